"""What flows through the layers: the covariances of one block of pairs, and the static facts that decide whether formulas hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from ntkpipe.kernels.geometry import Support

Array = jax.Array | np.ndarray


class Kernels(NamedTuple):
    """Both kernels of one block of image pairs, `(n1, n2)` each (of single images: `(n,)` each)."""

    nngp: Float[Array, "*n"]
    ntk: Float[Array, "*n"]


@dataclass(frozen=True)
class Signature:
    """What is known about activations before any number is.

    Args:
        spatial: extent of the axes besides the channels; `()` once flattened.
        features: channels, or features after flattening: the fan-in of a dense layer that follows.
        is_gaussian: activations at infinite width are Gaussian: true after a linear layer. Nonlinearities and
            normalisation have closed forms for Gaussian activations only.
        support: the classes of the covariance that are kept along each spatial axis (see `geometry`). It follows from
            what later layers need, so that only a resolved network knows it: `()` before.
        grid: of volumes, height and width: `spatial` is then their depth, and height times width. `()` of images.
    """

    spatial: tuple[int, ...]
    features: int
    is_gaussian: bool = False
    support: Support = ()
    grid: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image, the channels last."""
        return (*((self.spatial[0], *self.grid) if self.grid else self.spatial), self.features)

    @staticmethod
    def of_shape(shape: Sequence[int]) -> Signature:
        """Of inputs: `(features,)`, `(height, width, channels)` or `(depth, height, width, channels)`."""
        if len(shape) == 4:
            depth, height, width, channels = shape
            return Signature((depth, height * width), channels, grid=(height, width))
        return Signature(tuple(shape[:-1]), shape[-1])

    @property
    def entries(self) -> int:
        """Covariances of one pair of images that are computed."""
        return math.prod(len(classes) * extent for classes, extent in zip(self.support, self.spatial, strict=True))


FeatureScope = Literal["nothing", "pixels", "matrices"]

View = Callable[[], tuple[Array, ...]]


class FusionPolicy:
    """What a compiler is told of intermediate results; this one says nothing (see `evaluation.fusion` for those that do)."""

    direct_taps: ClassVar[int] = 0
    """Windows of up to so many taps are summed in one go, larger ones axis by axis."""

    lays_out_anew: ClassVar[bool] = False
    """Fields of the second images are looked up where they are used, not laid out beforehand."""

    def __call__(self, f: Callable[..., Any], *arrays: Array) -> Any:
        """`f(*arrays)`, an intermediate result within a layer."""
        return f(*arrays)

    def settle(self, *arrays: Array) -> tuple[Array, ...]:
        """The arrays themselves, which are about to be read in more than one place."""
        return arrays


_PLAIN = FusionPolicy()


@dataclass(frozen=True)
class KernelState:
    """The covariances of one block of pairs of images at one depth. Immutable: a layer returns a new one.

    Two layouts. *Flat* activations have one covariance a pair: `nngp` and `ntk` are of the block's shape, such as
    `(n1, n2)`. *Spatial* ones have `(c, h, w, e, b)`: class of the rows h - h', row h of the first image, column w of
    the first image, class of the columns w - w', and pair. So neighbouring pixels of the same two diagonals, which is what
    a convolution adds, lie a whole row of classes apart, and vectors run along classes and pairs.

    An *own* block pairs every image with itself: its same-pixel covariances are variances, with the angle between an
    image and itself exactly 0. (Computed from rounded pairs, the ReLU NTK's diagonal is off by 2.6e-4 at depth 10 in
    float32.) All that a pair needs to know of its two images alone is seen there, once per image, and comes back as
    `row` and `column`.

    Args:
        nngp: covariance of activations, K.
        ntk: neural tangent kernel, T; None is exactly zero (no trainable layer yet), or not asked for.
        signature: the static facts.
        is_own: the block pairs images with themselves.
        row: gives what the next layer has seen of the first images (`Layer.image_features`), broadcastable to `nngp`. A
            function, so that it is looked up where it is used and not copied; None in an own block.
        column: likewise of the second images.
        fusion: see `FusionPolicy`.
        lengths: of an own block of sequences that end at different places, `(n,)` positions that each has at the input.
        chunk: if given, only the class at this position along the rows is present (see `fold`).
    """

    nngp: Float[Array, "*n"]
    ntk: Float[Array, "*n"] | None
    signature: Signature
    is_own: bool = False
    row: View | None = None
    column: View | None = None
    fusion: FusionPolicy = _PLAIN
    lengths: Array | None = None
    chunk: Array | None = None

    def classes_at_hand(self, constant: np.ndarray) -> Array:
        """From a constant `(classes, rows)` to the classes that are present: `(c, rows, 1, 1, 1)`."""
        present = jnp.asarray(constant)
        if self.chunk is not None:
            present = lax.dynamic_slice_in_dim(present, self.chunk, 1)
        return present[:, :, None, None, None]

    def replace(self, **changes: Any) -> KernelState:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def settled(self) -> KernelState:
        """The same, about to be read in more than one place."""
        if self.ntk is None:
            return replace(self, nngp=self.fusion.settle(self.nngp)[0])
        nngp, ntk = self.fusion.settle(self.nngp, self.ntk)
        return replace(self, nngp=nngp, ntk=ntk)

    def map(self, f: Callable[[Array], Array], outgoing: Signature) -> KernelState:
        """A linear map without bias applied to both kernels."""
        ntk = None if self.ntk is None else f(self.ntk)
        return replace(self, nngp=f(self.nngp), ntk=ntk, signature=outgoing)


@runtime_checkable
class Layer(Protocol):
    """One step of the fold: maps the state, and says beforehand whether it may and what it needs."""

    @property
    def is_linear(self) -> bool:
        """It has weights of its own: its output is independent of everything else that comes from the same input."""
        ...

    feature_scope: ClassVar[FeatureScope]
    """What pairs must know of their images one by one: `image_features` then gives it."""

    def outgoing(self, incoming: Signature) -> Signature:
        """The signature after this layer, its support not yet known.

        Raises:
            ConfigError: if the layer has no formula for activations like `incoming`; the text says what to do.
        """
        ...

    def needs(self, incoming: Signature, support: Support, *, own: bool) -> Support:
        """The classes that must come in for those of `support` to go out.

        Args:
            incoming: its support not yet known.
            support: of the output; `()` if that is flat.
            own: in a block of images with themselves, where variances are seen as well.
        """
        ...

    def keeps_classes(self, incoming: Signature, outgoing: Signature) -> bool:
        """Along the first spatial axis the k-th outgoing class comes from the k-th incoming one alone."""
        ...

    def image_features(self, own: KernelState) -> Any:
        """What pairs must know of each image, from the images' own covariances.

        Returns:
            None, or a tuple of *fields* `(h, w, n)` (or `(n,)` if flat), which `row` and `column` then hold at their pixels
            (`pixels`); or of arrays `(n, ...)`, handed on as they are (`matrices`).
        """
        ...

    def apart(self, before: Any, incoming: Signature) -> Any:
        """How far apart images are after it that nearly coincide; variances are known.

        Args:
            before: an `Apart` of flat activations or of equal pixels.
            incoming: the signature.

        Returns:
            An `Apart`; None if nothing better is known than what the covariances themselves leave of their bounds.
        """
        ...

    def __call__(self, state: KernelState, outgoing: Signature) -> KernelState:
        """The state after this layer, whose signature is `outgoing`."""
        ...


class Pointwise:
    """What layers have in common that act on every covariance by itself: they need and keep all classes, and see nothing."""

    is_linear = False
    feature_scope: ClassVar[FeatureScope] = "nothing"

    def needs(self, incoming: Signature, support: Support, *, own: bool) -> Support:
        """The same."""
        del incoming, own
        return support

    def keeps_classes(self, incoming: Signature, outgoing: Signature) -> bool:
        """Always."""
        del incoming, outgoing
        return True

    def image_features(self, own: KernelState) -> Any:
        """Nothing."""
        del own
        return None

    def apart(self, before: Any, incoming: Signature) -> Any:
        """Unknown."""
        del before, incoming
        return None
