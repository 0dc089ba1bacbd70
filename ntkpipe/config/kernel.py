"""Settings of the kernel."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ntkpipe.config.checks import at_least, choice
from ntkpipe.errors import ConfigError
from ntkpipe.units import counted

KERNELS = (
    "fcn",
    "cnn_vec",
    "cnn_gap",
    "cntk",
    "myrtle5",
    "myrtle7",
    "myrtle10",
    "resnet",
    "wide_resnet",
    "attention",
    "rbf",
    "laplace",
    "matern",
    "linear",
    "spec",
    "empirical",
    "sum",
    "product",
    "features",
    "gram",
)
"""Families of architectures, `spec` (layers from a file), `empirical` (one finite network), `sum` and `product` (of other
kernels), `features` (products of given features) and `gram` (a given matrix)."""

GIVEN_KERNELS = ("features", "gram")
"""Kernels from files, without network and images. Their labels come from `data=labels`."""

COMBINED = ("sum", "product")
"""Kernels that combine other kernels."""

PLAIN_KERNELS = ("fcn", "cnn_vec", "cnn_gap", "cntk")
"""Families whose deep networks contain the shallow ones, so that one evaluation gives several depths."""


@dataclass(frozen=True)
class KernelConfig:
    """The kernel, by the architecture of its network.

    Every family uses some of the settings below (docs/architectures.md lists them). A setting that a family does not use is
    refused. `conf/kernel/` has the usual values of each family.

    Args:
        kind: a family of networks or kernels. `spec` reads layers from a file, `empirical` is one finite network with
            these layers. `sum` and `product` combine `parts`. `features` multiplies features from files, and `gram`
            reads kernel matrices from files.
        depth: hidden layers of `fcn`; convolutional layers of `cnn_vec`, `cnn_gap` and `attention`; layers of `cntk`
            and `wide_resnet` as their papers count them.
        readout_depths: for `fcn`, `cnn_vec`, `cnn_gap` and `cntk`: several values of `depth`, one run each in
            `run_dir/depth=...`. One evaluation of the deepest network gives all their kernels.
        width: hidden features or channels. It matters only in the `standard` parameterisation.
        w_std: standard deviation of the weights of every layer, including the readout, times sqrt(fan-in).
        b_std: standard deviation of the biases of every layer, including the readout. With null there are no biases.
        activation: the nonlinearity: `relu`, `erf`, `gelu`, `swish`, ... (docs/architectures.md lists all).
        activation_args: parameters of the nonlinearity, such as `{alpha: 0.1}`.
        parameterization: `ntk` or `standard`.
        filter: height and width of convolutions, or one number for both. For sequences the first number is the
            length. For volumes it is depth, height and width, or one number for all.
        padding: padding of convolutions: `SAME`, `VALID` or `CIRCULAR`.
        pool: pooling before the readout: `gap` (global average pooling), `vec` (none), or `lap` (local average
            pooling, for `cntk`).
        pool_radius: for `pool=lap`: squares have `2 pool_radius + 1` pixels on each side.
        blocks: number of blocks of `resnet` and `attention`.
        widen: for `wide_resnet`: the stages have `width * widen` channels, twice and four times that.
        mechanism: for `attention`: `SOFTMAX`, `IDENTITY` or `RELU`.
        length_scale: for `rbf`, `laplace` and `matern`: length scale in units of a prepared pixel.
        nu: smoothness of `matern`: 0.5, 1.5 or 2.5.
        path: for `spec` and `empirical`: JSON or YAML file with a list of layers.
        parts: for `sum` and `product`: the kernels to combine, such as [{kind:fcn,depth:1},{kind:fcn,depth:3}]. Each
            is a mapping of settings; settings that it omits have the usual values of its family. A part may also be
            the name of a family, a file of layers, or the folder of a run.
        weights: for `sum`: one number per part; by default the average. For `empirical`: `.npz` of the network's
            weights, as `finite.save_weights` writes it; by default they are drawn at random.
        seed: for `empirical`: seed of the random weights.
        initialiser: for `empirical`: distribution of the random weights: `gaussian`, `orthogonal` or
            `delta_orthogonal`.
        outputs: for `empirical`: `trace` (mean of the NTK over outputs), `pseudo` (NTK of the sum of the outputs over
            sqrt(c)) or `full` (all pairs of outputs, n c rows for n points, which is the linearisation of this
            network).
        scale: for `features`: the products of features are divided by this number.
        train: for `gram`: the kernel among training points (n, n). For `features`: their features (n, P). The file is
            `.npy`, `.npz` of one array, or a Zarr array, in float32 or float64.
        test: for `gram`: the kernel between test and training points (p, n). For `features`: the test points'
            features (p, P). The formats are those of `train`.
        test_diagonal: for `gram`: `k(x, x)` of the test points (p,), `.npy`. Variances need it; without it error
            bounds are estimates.
        dtype: precision of the computation: `float32` or `float64`. `gram` does not use it.
    """

    kind: str = "fcn"
    depth: int = 3
    readout_depths: tuple[int, ...] = ()
    width: int = 512
    w_std: float = 1.4142135623730951
    b_std: float | None = 0.1
    activation: str = "relu"
    activation_args: dict[str, Any] = field(default_factory=dict)
    parameterization: str = "ntk"
    filter: tuple[int, ...] = (3, 3)
    padding: str = "SAME"
    pool: str = "gap"
    pool_radius: int = 4
    blocks: int = 3
    widen: int = 1
    mechanism: str = "SOFTMAX"
    length_scale: float = 1.0
    nu: float | None = None
    path: str | None = None
    parts: tuple[dict[str, Any], ...] = ()
    weights: str | tuple[float, ...] | None = None
    seed: int = 0
    initialiser: str = "gaussian"
    outputs: str = "trace"
    scale: float = 1.0
    train: str | None = None
    test: str | None = None
    test_diagonal: str | None = None
    dtype: str = "float32"

    @property
    def title(self) -> str:
        """A short description for the user."""
        if self.kind == "fcn":
            return f"{self.activation} network with {counted(self.depth, 'hidden layer')}"
        if self.kind in COMBINED:
            return f"{self.kind} of {', '.join(str(part.get('kind', '?')) for part in self.parts)}"
        what = "features" if self.kind == "features" else "kernel"
        return f"{what} {Path(self.train).name}" if self.train is not None else Path(self.path or self.kind).name

    def __post_init__(self) -> None:
        choice("kernel.kind", self.kind, KERNELS)
        choice("kernel.dtype", self.dtype, ("float32", "float64"))
        choice("kernel.parameterization", self.parameterization, ("ntk", "standard"))
        choice("kernel.padding", self.padding, ("SAME", "VALID", "CIRCULAR"))
        choice("kernel.pool", self.pool, ("gap", "vec", "lap"))
        choice("kernel.mechanism", self.mechanism, ("SOFTMAX", "IDENTITY", "RELU"))
        choice("kernel.nu", self.nu, (None, 0.5, 1.5, 2.5))
        at_least("kernel.depth", self.depth, 0)
        for depth in self.readout_depths:
            at_least("kernel.readout_depths", depth, 0)
        if len(set(self.readout_depths)) != len(self.readout_depths):
            raise ConfigError(f"kernel.readout_depths={list(self.readout_depths)} must hold each depth once")
        if self.readout_depths and self.kind not in PLAIN_KERNELS:
            raise ConfigError(
                f"kernel.readout_depths is only for {', '.join(PLAIN_KERNELS)}, whose deeper networks contain the "
                f"shallower ones; for kernel={self.kind} use a sweep, if it has a depth: --multirun kernel.depth=1,3"
            )
        at_least("kernel.pool_radius", self.pool_radius, 0)
        for name in ("width", "blocks", "widen"):
            at_least(f"kernel.{name}", getattr(self, name), 1)
        at_least("kernel.w_std", self.w_std, 0.0, strict=True)
        at_least("kernel.b_std", self.b_std, 0.0)
        at_least("kernel.length_scale", self.length_scale, 0.0, strict=True)
        if len(self.filter) not in (1, 2, 3) or min(self.filter) < 1:
            raise ConfigError(
                f"kernel.filter={list(self.filter)} must be [height, width] or one number, [length] for sequences, or "
                "[depth, height, width] for volumes, all positive"
            )
        choice("kernel.initialiser", self.initialiser, ("gaussian", "orthogonal", "delta_orthogonal"))
        choice("kernel.outputs", self.outputs, ("trace", "pseudo", "full"))
        at_least("kernel.seed", self.seed, 0)
        at_least("kernel.scale", self.scale, 0.0, strict=True)
        self._check_parts()
        if self.kind in ("spec", "empirical") and self.path is None:
            raise ConfigError(f"kernel={self.kind} needs kernel.path=FILE.json or FILE.yaml, a list of layers")
        if self.kind == "gram" and None in (self.train, self.test):
            raise ConfigError(
                "kernel=gram needs kernel.train=FILE (training points by training points) and kernel.test=FILE (test points "
                "by training points), each a .npy file or a Zarr array"
            )
        if self.kind == "features" and None in (self.train, self.test):
            raise ConfigError(
                "kernel=features needs kernel.train=FILE (training points by features) and kernel.test=FILE (test points by the same "
                "features), each a .npy file or a Zarr array"
            )

    def _check_parts(self) -> None:
        if self.kind not in COMBINED:
            if isinstance(self.weights, tuple):
                raise ConfigError(f"kernel.weights={list(self.weights)} is only for kernel=sum")
            return
        if not self.parts:
            raise ConfigError(
                f"kernel={self.kind} needs kernel.parts=[...], a list of kernels, such as "
                "kernel.parts=[{kind:fcn,depth:1},{kind:fcn,depth:3}]"
            )
        if isinstance(self.weights, str):
            raise ConfigError(
                f"kernel.weights={self.weights} must be a list of numbers, one for each of {len(self.parts)} parts"
            )
