"""Resize images by interpolation: every covariance is multiplied by the matrix of weights on both sides."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ntkpipe.kernels import layout
from ntkpipe.kernels.apart import Apart
from ntkpipe.kernels.geometry import Classes, Support
from ntkpipe.kernels.layers.convolution import require_plane
from ntkpipe.kernels.layers.pooling import Mixing, require_image
from ntkpipe.kernels.state import Array, KernelState, Signature


@lru_cache(maxsize=256)
def interpolation(extent: int, out: int, method: str, antialias: bool) -> Float[np.ndarray, "out extent"]:
    """Return the interpolation weights of one axis, as `jax.image.resize` defines them. Each row sums to 1.

    Args:
        extent: number of incoming pixels.
        out: number of outgoing pixels.
        method: `nearest` or `linear`.
        antialias: widen the triangle of `linear` if the image shrinks.
    """
    at = np.arange(out)
    if method == "nearest":
        return np.eye(extent)[(2 * at + 1) * extent // (2 * out)]
    centre = (at + 0.5) * (extent / out) - 0.5
    width = max(extent / out, 1.0) if antialias else 1.0
    weights = np.maximum(0.0, 1.0 - np.abs(centre[:, None] - np.arange(extent)) / width)
    return weights / weights.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class _Axis:
    """One spatial axis of a covariance; both of its indices are interpolated."""

    extent: int
    out: int
    method: str
    antialias: bool

    def terms(self, outgoing: Classes) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield the input classes, positions and weights of each pair of contributions, `(len(outgoing), out)` each."""
        matrix = interpolation(self.extent, self.out, self.method, self.antialias)
        most = int((matrix > 0).sum(axis=1).max())
        # The largest weights of each row. Rows with fewer nonzero weights are filled up with zeros.
        sources = np.argsort(-matrix, axis=1, kind="stable")[:, :most]
        weights = np.take_along_axis(matrix, sources, axis=1)
        first = np.broadcast_to(np.arange(self.out), (len(outgoing), self.out))
        second = (first - np.array(outgoing, int).reshape(-1, 1)) % self.out
        for a in range(most):
            for b in range(most):
                weight = weights[first, a] * weights[second, b]
                if weight.any():
                    one = sources[first, a]
                    yield (one - sources[second, b]) % self.extent, one, weight

    def incoming(self, outgoing: Classes) -> Classes:
        """Return the incoming classes that the outgoing classes need."""
        found = [classes[weight > 0] for classes, _, weight in self.terms(outgoing)]
        return tuple(int(c) for c in np.unique(np.concatenate(found)))


@dataclass(frozen=True)
class Resize(Mixing):
    """Resize images to another height and width.

    `nearest` copies one incoming pixel to each outgoing pixel, so covariances of equal pixels need only those of equal
    pixels. `linear` mixes neighbours, so covariances of equal pixels need a band of pairs.

    Args:
        shape: height and width of the result; -1 keeps the size of that axis.
        method: `nearest` or `linear`.
        antialias: see `interpolation`.
    """

    shape: tuple[int, int]
    method: str
    antialias: bool

    def _axes(self, spatial: tuple[int, ...]) -> tuple[_Axis, ...]:
        sizes = zip(spatial, self.shape, strict=True)
        return tuple(_Axis(n, n if out < 0 else out, self.method, self.antialias) for n, out in sizes)

    def outgoing(self, incoming: Signature) -> Signature:
        """Return the signature after the layer: channels and Gaussianity are unchanged."""
        require_image(incoming)
        require_plane(incoming)
        spatial = tuple(axis.out for axis in self._axes(incoming.spatial))
        return dataclasses.replace(incoming, spatial=spatial, support=())

    def needs(self, incoming: Signature, support: Support, *, own: bool) -> Support:
        """Return the incoming classes that the outgoing classes are interpolated from."""
        del own
        axes = self._axes(incoming.spatial)
        return tuple(axis.incoming(classes) for axis, classes in zip(axes, support, strict=True))

    def apart(self, before: Apart, incoming: Signature) -> Apart | None:
        """Return the bounds of the copied pixels for `nearest`, and None for `linear`, which combines different
        pixels.
        """
        if self.method != "nearest":
            return None
        rows, columns = (
            interpolation(axis.extent, axis.out, self.method, self.antialias).argmax(axis=1)
            for axis in self._axes(incoming.spatial)
        )
        return Apart(*(part[rows[:, None], columns[None, :]] for part in before))

    def within(self, state: KernelState, outgoing: Signature) -> KernelState:
        """Interpolate along the columns."""
        axis, wanted = self._axes(state.signature.spatial)[1], outgoing.support[1]
        has = np.array(state.signature.support[1])

        def along_columns(x: Array) -> Array:
            flat = x.reshape(*x.shape[:2], -1, x.shape[4])
            parts = []
            for classes, at, weight in axis.terms(wanted):
                index = (at * len(has) + np.searchsorted(has, classes).clip(0, len(has) - 1)).T
                taken = jnp.take(flat, index.ravel(), axis=2).reshape(*x.shape[:2], *index.shape, x.shape[4])
                parts.append(taken * jnp.asarray(weight.T[:, :, None], x.dtype))
            return layout.added(parts)

        return state.map(lambda x: state.fusion(along_columns, x), state.signature)

    def across(self, state: KernelState, outgoing: Signature) -> KernelState:
        """Interpolate along the rows."""
        axis, wanted = self._axes(state.signature.spatial)[0], outgoing.support[0]
        has = np.array(state.signature.support[0])

        def along_rows(x: Array) -> Array:
            flat = x.reshape(-1, *x.shape[2:])
            parts = []
            for classes, at, weight in axis.terms(wanted):
                index = np.searchsorted(has, classes).clip(0, len(has) - 1) * axis.extent + at
                taken = jnp.take(flat, index.ravel(), axis=0).reshape(*index.shape, *x.shape[2:])
                parts.append(taken * jnp.asarray(weight[:, :, None, None, None], x.dtype))
            return layout.added(parts)

        return state.map(lambda x: state.fusion(along_rows, x), outgoing)
