"""Pooling: sums over windows of both pixel indices of a covariance."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from ntkpipe.errors import ConfigError
from ntkpipe.kernels import layout
from ntkpipe.kernels.apart import Apart
from ntkpipe.kernels.geometry import AnyWindow, PairedWindow, Support, Window, every_class, paired_window, windows_along
from ntkpipe.kernels.layers.convolution import moved
from ntkpipe.kernels.state import Array, FeatureScope, KernelState, Signature


def require_image(incoming: Signature) -> None:
    """Raise `ConfigError` if the activations are flat."""
    if len(incoming.spatial) != 2:
        raise ConfigError("acts on images [height, width, channels], but activations are flat here")


class Mixing:
    """Base of the pools: linear layers without weights that mix classes.

    `within` mixes along the columns, inside one class of rows; `across` then mixes along the rows.
    """

    is_linear = False
    feature_scope: ClassVar[FeatureScope] = "nothing"

    def keeps_classes(self, incoming: Signature, outgoing: Signature) -> bool:
        """Return False: a pool mixes classes."""
        del incoming, outgoing
        return False

    def apart(self, before: Apart, incoming: Signature) -> Apart | None:
        """Return None: a pool combines different pixels, so the distance of equal pixels is not enough."""
        del before, incoming
        return None

    def image_features(self, own: KernelState) -> None:
        """Return None: the layer needs nothing of single images."""

    def within(self, state: KernelState, outgoing: Signature) -> KernelState:
        """Apply the part that needs one class of rows at a time."""
        raise NotImplementedError

    def across(self, state: KernelState, outgoing: Signature) -> KernelState:
        """Apply the rest to the results of `within` for all classes."""
        raise NotImplementedError

    def __call__(self, state: KernelState, outgoing: Signature) -> KernelState:
        """Apply `within`, then `across`."""
        return self.across(self.within(state.settled(), outgoing), outgoing)


@dataclass(frozen=True)
class SumPool(Mixing):
    """Sum over windows: `AvgPool` without the division.

    Args:
        window: height and width of the window; depth, height and width for volumes. strides: in the same order as
        `window`.
        padding: `SAME`, `VALID` or `CIRCULAR`.
    """

    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: str

    def _windows(self, incoming: Signature) -> tuple[Window, AnyWindow]:
        return windows_along(incoming.spatial, incoming.grid, self.window, self.strides, self.padding)

    def _paired(self, incoming: Signature, support: Support) -> tuple[PairedWindow, ...]:
        windows = self._windows(incoming)
        return tuple(paired_window(w, False, classes) for w, classes in zip(windows, support, strict=True))

    def outgoing(self, incoming: Signature) -> Signature:
        """Return the signature after the layer: channels and Gaussianity are unchanged."""
        require_image(incoming)
        return moved(incoming, self._windows(incoming))

    def needs(self, incoming: Signature, support: Support, *, own: bool) -> Support:
        """Return the incoming classes: a band around each outgoing class, or all classes."""
        del own
        return tuple(p.incoming for p in self._paired(incoming, support))

    def _factors(self, window: AnyWindow) -> np.ndarray:
        """Return the factor of the sum over each window, `(out,)`."""
        return np.ones(window.out)

    def within(self, state: KernelState, outgoing: Signature) -> KernelState:
        """Sum along the columns."""
        cols = self._paired(state.signature, outgoing.support)[1]
        factor = self._factors(cols.window)
        classes = np.array(cols.outgoing, int)
        both = factor[:, None] * factor[layout.second_positions(cols.outgoing, cols.window.out)]
        assert both.shape == (cols.window.out, len(classes))

        def along_columns(x: Array) -> Array:
            summed = _halves(x, cols, 2, 3) if _is_tiling(cols) else layout.gather_columns(x, cols)
            return summed * jnp.asarray(both[:, :, None], summed.dtype)

        return state.map(lambda x: state.fusion(along_columns, x), state.signature)

    def across(self, state: KernelState, outgoing: Signature) -> KernelState:
        """Sum along the rows."""
        rows = self._paired(state.signature, outgoing.support)[0]
        factor = self._factors(rows.window)
        both = factor * factor[layout.second_positions(rows.outgoing, rows.window.out).T]

        def along_rows(x: Array) -> Array:
            summed = _halves(x, rows, 1, 0) if _is_tiling(rows) else layout.gather_rows(x, rows)
            return summed * jnp.asarray(both[:, :, None, None, None], summed.dtype)

        return state.map(lambda x: state.fusion(along_rows, x), outgoing)


@dataclass(frozen=True)
class AvgPool(SumPool):
    """Mean over windows: the covariance of two windows is the mean over all pairs of their pixels.

    Args:
        window: height and width of the window; depth, height and width for volumes.
        strides: in the same order as `window`.
        padding: `SAME`, `VALID` or `CIRCULAR`.
        normalize_edges: divide by the number of image pixels that a window covers instead of its size.
    """

    normalize_edges: bool

    def _factors(self, window: AnyWindow) -> np.ndarray:
        counts = window.counts() if self.normalize_edges else np.full(window.out, window.size)
        return 1.0 / counts


@dataclass(frozen=True)
class GlobalPool(Mixing):
    """Sum or mean over all pixels: both kernels are summed or averaged over all pairs of pixels (arXiv:1904.11955).

    Args:
        is_mean: take the mean instead of the sum.
    """

    is_mean: bool

    def outgoing(self, incoming: Signature) -> Signature:
        """Return the flat signature, whose features are the channels."""
        require_image(incoming)
        return dataclasses.replace(incoming, spatial=(), support=(), grid=())

    def needs(self, incoming: Signature, support: Support, *, own: bool) -> Support:
        """Return all classes."""
        del support, own
        return tuple(every_class(extent) for extent in incoming.spatial)

    def within(self, state: KernelState, outgoing: Signature) -> KernelState:
        """Sum over the pixels of each class."""
        return state.map(lambda x: state.fusion(_sum_of_class, x), state.signature)

    def across(self, state: KernelState, outgoing: Signature) -> KernelState:
        """Sum over the classes, and divide if the mean is asked for."""
        scale = 1.0 / math.prod(state.signature.spatial) ** 2 if self.is_mean else 1.0
        return state.map(lambda x: x.sum(axis=(0, 1, 2, 3)) * scale, outgoing)


def _sum_of_class(x: Array) -> Array:
    # Summing axis by axis keeps each sum to a few dozen terms, so float32 loses only a few units in the last place.
    return x.sum(axis=1, keepdims=True).sum(axis=2, keepdims=True).sum(axis=3, keepdims=True)


def _is_tiling(paired: PairedWindow) -> bool:
    """Return whether the windows tile the axis and every outgoing class is needed."""
    window = paired.window
    if not isinstance(window, Window):
        return False
    return window.size == window.stride and window.is_exact and paired.outgoing == every_class(window.out)


def _halves(x: Array, paired: PairedWindow, position: int, classes: int) -> Array:
    """Sum over windows that tile the axis.

    Output (C, H) sums the inputs of class s C + r at position s H + a, over 0 <= a < s and those r = a - b with
    0 <= b < s. For each r the positions are summed first, over whole rows of classes.
    """
    assert isinstance(paired.window, Window)
    s, out = paired.window.stride, paired.window.out

    def every(x: Array, axis: int, first: int) -> Array:
        return x[(slice(None),) * axis + (slice(first, None, s),)]

    at = [every(x, position, a) for a in range(s)]
    parts = []
    for r in range(1 - s, s):
        part = layout.added(at[a] for a in range(max(r, 0), min(s, s + r)))
        if r < 0:  # class s C + r wraps around for C = 0
            chosen = every(part, classes, s + r)
            cut = (slice(None),) * classes
            chosen = jnp.concatenate([chosen[(*cut, slice(out - 1, None))], chosen[(*cut, slice(0, out - 1))]], classes)
        else:
            chosen = every(part, classes, r)
        parts.append(chosen)
    return layout.added(parts)
