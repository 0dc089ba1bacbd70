"""The state that layers map: covariances of one block of pairs, with static facts about the activations."""

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
    """Both kernels of one block of image pairs, `(n1, n2)` each, or of images with themselves, `(n,)` each."""

    nngp: Float[Array, "*n"]
    ntk: Float[Array, "*n"]


@dataclass(frozen=True)
class Signature:
    """Static facts about the activations at one place of a network.

    Args:
        spatial: sizes of the axes other than the channels; `()` for flat activations.
        features: number of channels, or of features for flat activations: the fan-in of a dense layer at this place.
        is_gaussian: whether activations are Gaussian at infinite width, which is true after a linear layer.
            Nonlinearities and normalisation have closed forms for Gaussian activations only.
        support: the classes of the covariance that are kept along each spatial axis (see `geometry`). It follows from
            what later layers need, so it is `()` until the network is resolved.
        grid: height and width of volumes, whose `spatial` is depth and height times width; `()` for images.
    """

    spatial: tuple[int, ...]
    features: int
    is_gaussian: bool = False
    support: Support = ()
    grid: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image, with the channels last."""
        return (*((self.spatial[0], *self.grid) if self.grid else self.spatial), self.features)

    @staticmethod
    def of_shape(shape: Sequence[int]) -> Signature:
        """Return the signature of inputs.

        Args:
            shape: `(features,)`, `(height, width, channels)` or `(depth, height, width, channels)`.
        """
        if len(shape) == 4:
            depth, height, width, channels = shape
            return Signature((depth, height * width), channels, grid=(height, width))
        return Signature(tuple(shape[:-1]), shape[-1])

    @property
    def entries(self) -> int:
        """Number of covariances that are computed for one pair of images."""
        return math.prod(len(classes) * extent for classes, extent in zip(self.support, self.spatial, strict=True))


FeatureScope = Literal["nothing", "pixels", "matrices"]

View = Callable[[], tuple[Array, ...]]


class FusionPolicy:
    """Hints to the compiler about intermediate results. This default gives none; see `evaluation.fusion` for others."""

    direct_taps: ClassVar[int] = 0
    """Windows of up to this many taps are summed directly; larger ones are summed axis by axis."""

    lays_out_anew: ClassVar[bool] = False
    """Whether fields of the second images are looked up where they are used instead of being laid out in advance."""

    def __call__(self, f: Callable[..., Any], *arrays: Array) -> Any:
        """Return `f(*arrays)`, an intermediate result within a layer."""
        return f(*arrays)

    def settle(self, *arrays: Array) -> tuple[Array, ...]:
        """Return the arrays unchanged; the caller is about to read them in more than one place."""
        return arrays


_PLAIN = FusionPolicy()


@dataclass(frozen=True)
class KernelState:
    """The covariances of one block of image pairs at one depth. It is immutable: a layer returns a new state.

    There are two layouts. *Flat* activations have one covariance per pair, so `nngp` and `ntk` have the shape of the
    block, such as `(n1, n2)`. *Spatial* activations have the shape `(c, h, w, e, b)`: class of the rows h - h', row h
    of the first image, column w of the first image, class of the columns w - w', and pair. A convolution adds
    neighbouring pixels on the same two diagonals. In this layout they are a whole row of classes apart, so vector
    instructions run along classes and pairs.

    An *own* block pairs every image with itself. Its covariances of equal pixels are variances, and the angle between
    an image and itself is exactly 0. (Computed from rounded pairs, the diagonal of the ReLU NTK is off by 2.6e-4 at
    depth 10 in float32.) Own blocks also give the per-image features that pairs need, which are passed as `row` and
    `column`.

    Args:
        nngp: covariance of the activations, K.
        ntk: neural tangent kernel, T; None if it is exactly zero (no trainable layer yet) or not needed.
        signature: the static facts.
        is_own: whether the block pairs images with themselves.
        row: returns the features of the first images for the next layer (`Layer.image_features`), broadcastable to
            `nngp`. It is a function so that features are looked up where they are used, not copied. None in an own
            block.
        column: the same for the second images.
        fusion: see `FusionPolicy`.
        lengths: `(n,)` lengths at the input of the sequences in an own block, if they differ.
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
        """Select the classes that are present from a constant `(classes, rows)`; the result is `(c, rows, 1, 1, 1)`."""
        present = jnp.asarray(constant)
        if self.chunk is not None:
            present = lax.dynamic_slice_in_dim(present, self.chunk, 1)
        return present[:, :, None, None, None]

    def replace(self, **changes: Any) -> KernelState:
        """Return a copy with some fields changed."""
        return replace(self, **changes)

    def settled(self) -> KernelState:
        """Return the same state, marked as about to be read in more than one place."""
        if self.ntk is None:
            return replace(self, nngp=self.fusion.settle(self.nngp)[0])
        nngp, ntk = self.fusion.settle(self.nngp, self.ntk)
        return replace(self, nngp=nngp, ntk=ntk)

    def map(self, f: Callable[[Array], Array], outgoing: Signature) -> KernelState:
        """Apply a linear map without bias to both kernels."""
        ntk = None if self.ntk is None else f(self.ntk)
        return replace(self, nngp=f(self.nngp), ntk=ntk, signature=outgoing)


@runtime_checkable
class Layer(Protocol):
    """One step of the fold. A layer maps the state; before that it says whether it can and what it needs."""

    @property
    def is_linear(self) -> bool:
        """Whether the layer has weights of its own, so its output is independent of other functions of the same
        input.
        """
        ...

    feature_scope: ClassVar[FeatureScope]
    """The kind of per-image features that pairs need, which `image_features` returns."""

    def outgoing(self, incoming: Signature) -> Signature:
        """Return the signature after this layer, with its support not yet known.

        Raises:
            ConfigError: if the layer has no formula for activations like `incoming`; the text says what to do.
        """
        ...

    def needs(self, incoming: Signature, support: Support, *, own: bool) -> Support:
        """Return the incoming classes that the outgoing classes `support` need.

        Args:
            incoming: the incoming signature, with its support not yet known.
            support: classes of the output; `()` if the output is flat.
            own: whether the block pairs images with themselves, where variances are needed too.
        """
        ...

    def keeps_classes(self, incoming: Signature, outgoing: Signature) -> bool:
        """Return whether, along the first spatial axis, the k-th outgoing class depends on the k-th incoming class
        alone.
        """
        ...

    def image_features(self, own: KernelState) -> Any:
        """Return the per-image features that pairs need, from the images' own covariances.

        Returns:
            None, or a tuple of arrays. With the scope `pixels` they are *fields* `(h, w, n)`, or `(n,)` if flat, which
            `row` and `column` hold at their pixels. With the scope `matrices` they are arrays `(n, ...)`, passed on
            unchanged.
        """
        ...

    def apart(self, before: Any, incoming: Signature) -> Any:
        """Return the bounds of nearly equal images after this layer.

        Args:
            before: an `Apart` of flat activations or of equal pixels.
            incoming: the incoming signature.

        Returns:
            An `Apart`; None if the bounds can only be computed from the covariances themselves.
        """
        ...

    def __call__(self, state: KernelState, outgoing: Signature) -> KernelState:
        """Return the state after this layer, with the signature `outgoing`."""
        ...


class Composite:
    """Base of layers that are made of other layers. `fold` applies those; the layer itself only describes them."""

    feature_scope: ClassVar[FeatureScope] = "nothing"  # the layers within may need features

    def keeps_classes(self, incoming: Signature, outgoing: Signature) -> bool:
        """Return True: the steps of the layers within decide."""
        del incoming, outgoing
        return True

    def image_features(self, own: KernelState) -> Any:
        """Return None: the layers within return their own features."""
        del own

    def apart(self, before: Any, incoming: Signature) -> Any:
        """Return None: the layers within return their own bounds."""
        del before, incoming

    def __call__(self, state: KernelState, outgoing: Signature) -> KernelState:
        """Raise: `fold` applies the layers instead."""
        raise AssertionError(f"fold applies the layers of {type(self).__name__}")


class Pointwise:
    """Base of layers that act on every covariance separately. They keep all classes and need no per-image features."""

    is_linear = False
    feature_scope: ClassVar[FeatureScope] = "nothing"

    def needs(self, incoming: Signature, support: Support, *, own: bool) -> Support:
        """Return the outgoing classes."""
        del incoming, own
        return support

    def keeps_classes(self, incoming: Signature, outgoing: Signature) -> bool:
        """Return True."""
        del incoming, outgoing
        return True

    def image_features(self, own: KernelState) -> Any:
        """Return None: no features are needed."""
        del own
        return None

    def apart(self, before: Any, incoming: Signature) -> Any:
        """Return None: no better bounds are known."""
        del before, incoming
        return None
