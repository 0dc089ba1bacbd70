"""Families of architectures, as plain lists of layers.

Every function returns a canonical spec, and raises `ConfigError` if a parameter is out of range. Common parameters:

- `w_std`, `b_std`: standard deviations of the weights and biases of every layer, including the readout; `b_std` None
  means no biases.
- `width`: hidden features or channels of the finite networks. It changes the kernel in the `standard` parameterisation
  only.
- `activation`, `activation_args`: name of the nonlinearity, and its parameters, such as `{"alpha": 0.1}`.
- `parameterization`: `ntk` or `standard`.
- `filter`, `padding`: filter and padding of every convolution.
- `image_shape`: `(height, width, channels)`, for families whose layers depend on it.

The readout has 10 features; a kernel does not depend on their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.parts import FLATTEN, GLOBAL_MEAN, Parts, Spec, chosen, repeated, whole
from ntkpipe.kernels.spec import canonical_spec

_SQRT2 = 1.4142135623730951


def fcn(
    depth: int = 3,
    *,
    width: int = 512,
    w_std: float = _SQRT2,
    b_std: float | None = 0.1,
    activation: str = "relu",
    activation_args: Mapping[str, Any] | None = None,
    parameterization: str = "ntk",
) -> Spec:
    """A fully connected network: flatten, `depth` times (dense, nonlinearity), a dense readout (arXiv:1711.00165).

    Args:
        depth: number of hidden layers; 0 is a linear model.
        width: number of hidden features. The other parameters are described at the top of this module.
    """
    parts = Parts(w_std, b_std, activation, activation_args, parameterization)
    hidden = repeated(whole("kernel.depth", depth), [parts.dense(width), parts.phi])
    return canonical_spec([FLATTEN, *hidden, parts.dense(10)])


def cnn_vec(
    depth: int = 3,
    *,
    width: int = 64,
    w_std: float = _SQRT2,
    b_std: float | None = 0.1,
    activation: str = "relu",
    activation_args: Mapping[str, Any] | None = None,
    parameterization: str = "ntk",
    filter: Sequence[int] = (3, 3),
    padding: str = "SAME",
) -> Spec:
    """A convolutional network without pooling, flattened before the readout (CNN-Vec; arXiv:1810.05148,
    arXiv:2007.15801).

    Its kernel needs the covariances of equal pixels only. For 32 x 32 images this is a thousandth of the covariances
    that pooling needs.

    Args:
        depth: convolutional layers, each with a nonlinearity.
    """
    parts = Parts(w_std, b_std, activation, activation_args, parameterization, filter, padding)
    return canonical_spec([*parts.convs(width, whole("kernel.depth", depth, 1)), *parts.readout("vec")])


def cnn_gap(
    depth: int = 3,
    *,
    width: int = 64,
    w_std: float = _SQRT2,
    b_std: float | None = 0.1,
    activation: str = "relu",
    activation_args: Mapping[str, Any] | None = None,
    parameterization: str = "ntk",
    filter: Sequence[int] = (3, 3),
    padding: str = "SAME",
) -> Spec:
    """A convolutional network with global average pooling before the readout (CNN-GAP; arXiv:1810.05148,
    arXiv:2007.15801).

    Args:
        depth: convolutional layers, each with a nonlinearity.
    """
    parts = Parts(w_std, b_std, activation, activation_args, parameterization, filter, padding)
    return canonical_spec([*parts.convs(width, whole("kernel.depth", depth, 1)), *parts.readout("gap")])


def cntk(
    depth: int = 11,
    *,
    pool: str = "gap",
    pool_radius: int = 4,
    width: int = 64,
    w_std: float = _SQRT2,
    b_std: float | None = None,
    activation: str = "relu",
    activation_args: Mapping[str, Any] | None = None,
    parameterization: str = "ntk",
    filter: Sequence[int] = (3, 3),
    padding: str = "SAME",
) -> Spec:
    """The CNTK of Arora et al. 2019 (arXiv:1904.11955), and of Li et al. 2019 with local pooling (arXiv:1911.00809).

    These are the papers' networks with all layers trained, up to a constant factor: the papers scale the first layer by
    1 and every other layer by sqrt(2), and ReLU networks without biases are homogeneous. The authors' program does not
    train the first and the last layer by default, which removes their contributions from the NTK. This is not supported
    here.

    Args:
        depth: depth as in the papers' tables, which count the readout: `depth - 1` convolutional layers.
        pool: `vec` (CNTK-V), `gap` (CNTK-G), or `lap`, local average pooling: every pixel becomes the mean of the
            square of `2 pool_radius + 1` by `2 pool_radius + 1` pixels around it, and the result is flattened. Radius 0
            is `vec`, and a radius of the size of the image is `gap` up to a factor.
        pool_radius: radius of `lap`. Pixels outside the image are 0, or wrap around if `padding` is `CIRCULAR`.
    """
    parts = Parts(w_std, b_std, activation, activation_args, parameterization, filter, padding)
    hidden = parts.convs(width, whole("kernel.depth", depth, 2) - 1)
    edge = 2 * whole("kernel.pool_radius", pool_radius) + 1
    blur = {"op": "avg_pool", "window": [edge, edge], "strides": [1, 1], "padding": padding}
    chosen("kernel.pool", pool, {"gap": 0, "vec": 0, "lap": 0})
    return canonical_spec([*hidden, *([blur, *parts.readout("vec")] if pool == "lap" else parts.readout(pool))])


# Convolutional layers before each of the three poolings (arXiv:2003.02237).
_MYRTLE = {5: (2, 1, 1), 7: (2, 2, 2), 10: (3, 3, 3)}


def myrtle(
    depth: int,
    image_shape: Sequence[int],
    *,
    width: int = 64,
    w_std: float = _SQRT2,
    b_std: float | None = None,
    activation: str = "relu",
    activation_args: Mapping[str, Any] | None = None,
    parameterization: str = "ntk",
    filter: Sequence[int] = (3, 3),
    padding: str = "SAME",
) -> Spec:
    """A Myrtle network (Shankar et al. 2020, arXiv:2003.02237): convolutions, with 2 x 2 poolings down to one pixel.

    Two poolings halve the image between three groups of convolutions. After the last group the mean over the remaining
    pixels is taken: by further 2 x 2 poolings where they fit (five in total for 32 x 32 images, as in the paper), or at
    once.

    Args:
        depth: number of layers with weights, including the readout: 5, 7 or 10.
        image_shape: `(height, width, channels)`; height and width must be multiples of 4.
    """
    groups = chosen("kernel.depth", depth, _MYRTLE)
    if len(image_shape) != 3:
        raise ConfigError(f"kernel=myrtle{depth} needs images [height, width, channels], not {list(image_shape)}")
    height, wide = image_shape[:2]
    if height % 4 or wide % 4:
        raise ConfigError(
            f"kernel=myrtle{depth} halves its images twice: {height} x {wide} pixels must be multiples of 4 (crop or pad "
            "them, or use data.downsample or data.image_size)"
        )
    parts = Parts(w_std, b_std, activation, activation_args, parameterization, filter, padding)
    halve = {"op": "avg_pool", "window": [2, 2], "strides": [2, 2], "padding": "VALID"}
    body = [layer for group in groups[:2] for layer in (*parts.convs(width, group), halve)]
    left = height // 4
    halvings = int(math.log2(left)) if height == wide and left & (left - 1) == 0 else None
    last = [GLOBAL_MEAN] if halvings is None else [halve] * halvings + [FLATTEN]
    return canonical_spec([*body, *parts.convs(width, groups[2]), *last, parts.dense(10)])


def resnet(
    blocks: int = 3,
    *,
    pool: str = "gap",
    width: int = 64,
    w_std: float = _SQRT2,
    b_std: float | None = 0.1,
    activation: str = "relu",
    activation_args: Mapping[str, Any] | None = None,
    parameterization: str = "ntk",
    filter: Sequence[int] = (3, 3),
    padding: str = "SAME",
) -> Spec:
    """A residual network at one resolution: a convolution, then pre-activation blocks with identity shortcuts, then
    pooling.

    He et al. 2016 (arXiv:1603.05027), without batch normalisation, which has no such kernel. For stages of halved
    resolution see `wide_resnet`.

    Args:
        blocks: number of blocks of two convolutions each; the network has `2 blocks + 2` layers with weights.
        pool: `gap` or `vec`.
    """
    parts = Parts(w_std, b_std, activation, activation_args, parameterization, filter, padding)
    body = [parts.residual(width) for _ in range(whole("kernel.blocks", blocks, 1))]
    return canonical_spec([parts.conv(width), *body, parts.phi, *parts.readout(pool)])


def wide_resnet(
    depth: int = 16,
    *,
    widen: int = 1,
    width: int = 16,
    w_std: float = _SQRT2,
    b_std: float | None = None,
    activation: str = "relu",
    activation_args: Mapping[str, Any] | None = None,
    parameterization: str = "ntk",
    filter: Sequence[int] = (3, 3),
    padding: str = "SAME",
) -> Spec:
    """A wide residual network (Zagoruyko and Komodakis 2016, arXiv:1605.07146) of `depth = 6 k + 4` layers: three
    stages.

    Each stage has k pre-activation blocks. The first block of a stage projects its shortcut by a convolution, and
    halves the image in the second and third stage. As in neural-tangents, there is no normalisation and no nonlinearity
    after the last block.

    Args:
        depth: 10, 16, 22, 28, ...
        widen: the widening factor k of the paper: the stages have `width * widen` channels, twice and four times that.
        width: channels of the first convolution.
    """
    if whole("kernel.depth", depth, 10) % 6 != 4:
        raise ConfigError(f"kernel.depth={depth} of a wide_resnet must be 6 k + 4: 10, 16, 22, 28, 34, 40, ...")
    parts = Parts(w_std, b_std, activation, activation_args, parameterization, filter, padding)
    body: Spec = []
    for stage in range(3):
        features = width * whole("kernel.widen", widen, 1) * 2**stage
        body.append(parts.residual(features, 1 if stage == 0 else 2, projects=True))
        body += [parts.residual(features) for _ in range((depth - 4) // 6 - 1)]
    return canonical_spec([parts.conv(width), *body, *parts.readout()])


def attention(
    depth: int = 1,
    *,
    blocks: int = 1,
    mechanism: str = "SOFTMAX",
    width: int = 64,
    w_std: float = _SQRT2,
    b_std: float | None = None,
    activation: str = "relu",
    activation_args: Mapping[str, Any] | None = None,
    filter: Sequence[int] = (3, 3),
    padding: str = "SAME",
) -> Spec:
    """Convolutions, then self-attention over all pixels, then global average pooling (Hron et al. 2020,
    arXiv:2006.10540).

    Attention has infinitely many heads in the limit, linear scaling, and weights of standard deviation 1 for keys,
    queries and values. `w_std` and `b_std` are those of its output weights. It has no `standard` parameterisation.

    Args:
        depth: number of convolutional layers, each followed by a nonlinearity.
        blocks: number of attention layers, each followed by a nonlinearity.
        mechanism: function of queries times keys: `SOFTMAX`, `IDENTITY` or `RELU`.
    """
    parts = Parts(w_std, b_std, activation, activation_args, "ntk", filter, padding)
    attend = {
        "op": "global_self_attention",
        "n_heads": 1,
        "n_chan_out": width,
        "n_chan_key": width,
        "n_chan_val": width,
        "mechanism": mechanism,
        "w_out_std": w_std,
        "b_std": b_std,
    }
    body = [layer for _ in range(whole("kernel.blocks", blocks, 1)) for layer in (attend, parts.phi)]
    stem = parts.convs(width, whole("kernel.depth", depth, 1))
    return canonical_spec([*stem, *body, *parts.readout()])


def _stationary(kernel: str, length_scale: float, nu: float | None = None) -> Spec:
    return canonical_spec([FLATTEN, {"op": "stationary", "kernel": kernel, "length_scale": length_scale, "nu": nu}])


def rbf(*, length_scale: float = 1.0) -> Spec:
    """The Gaussian kernel `exp(-r^2 / (2 l^2))`, a baseline, with r^2 the mean squared difference per pixel.

    As for all baselines, both kernels are equal to it: predictions of `nngp` and `ntk` are the same kernel regression.

    Args:
        length_scale: l, in units of the prepared pixel values.
    """
    return _stationary("rbf", length_scale)


def laplace(*, length_scale: float = 1.0) -> Spec:
    """The Laplace kernel `exp(-r / l)`, a baseline close to the NTK of fully connected networks (arXiv:2007.01580).

    Args:
        length_scale: l, see `rbf`.
    """
    return _stationary("laplace", length_scale)


def matern(*, nu: float = 1.5, length_scale: float = 1.0) -> Spec:
    """The Matern kernel (Rasmussen and Williams 2006, section 4.2), a baseline; see `rbf`.

    Args:
        nu: smoothness, 0.5, 1.5 or 2.5.
        length_scale: l, see `rbf`.
    """
    return _stationary("matern", length_scale, nu)


def linear(*, w_std: float = 1.0, b_std: float | None = None) -> Spec:
    """The kernel `w_std^2 x . x' / d + b_std^2` of a network without hidden layers, a baseline."""
    return fcn(0, w_std=w_std, b_std=b_std)


@dataclass(frozen=True)
class Family:
    """A family under the name that configurations use.

    Args:
        make: the function that returns its layers.
        fixed: parameters that the name determines.
    """

    make: Callable[..., Spec]
    fixed: Mapping[str, Any]

    @property
    def takes(self) -> tuple[str, ...]:
        """Names of the parameters that can be chosen, without `image_shape`."""
        return tuple(name for name in signature(self.make).parameters if name not in (*self.fixed, "image_shape"))

    @property
    def needs_image_shape(self) -> bool:
        """Whether the layers depend on the shape of the images."""
        return "image_shape" in signature(self.make).parameters

    def __call__(self, image_shape: Sequence[int], **parameters: Any) -> Spec:
        """Return the layers for images of this shape."""
        shape = {"image_shape": image_shape} if self.needs_image_shape else {}
        return self.make(**self.fixed, **shape, **parameters)


FAMILIES: dict[str, Family] = {
    "fcn": Family(fcn, {}),
    "cnn_vec": Family(cnn_vec, {}),
    "cnn_gap": Family(cnn_gap, {}),
    "cntk": Family(cntk, {}),
    "myrtle5": Family(myrtle, {"depth": 5}),
    "myrtle7": Family(myrtle, {"depth": 7}),
    "myrtle10": Family(myrtle, {"depth": 10}),
    "resnet": Family(resnet, {}),
    "wide_resnet": Family(wide_resnet, {}),
    "attention": Family(attention, {}),
    "rbf": Family(rbf, {}),
    "laplace": Family(laplace, {}),
    "matern": Family(matern, {}),
    "linear": Family(linear, {}),
}
"""The values of `kernel.kind`, besides `spec`."""
