"""The layout of covariances by classes of pixel pairs, `(c, h, w, e, b)`, and functions that convert to and from it.

`KernelState` describes the five axes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from functools import reduce

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ntkpipe.kernels.geometry import AnyWindow, PairedWindow, Support, Window
from ntkpipe.kernels.state import Array, KernelState, Layer, Signature, View

Mask = Callable[[np.ndarray], Array]
"""Maps a constant `(classes, positions)` of the first axis to its values for the current classes, `(c, h, 1, 1, 1)`."""


def added(parts: Iterable[Array]) -> Array:
    """Return the sum of one or more arrays, added in their order."""
    return reduce(operator.add, parts)


def second_positions(classes: tuple[int, ...], extent: int) -> np.ndarray:
    """Return the position in the second image for each position in the first and each class, `(extent, classes)`."""
    return (np.arange(extent)[:, None] - np.array(classes)[None, :]) % extent


def spread_row(field: Float[Array, "h w b"]) -> Float[Array, "1 h w 1 b"]:
    """Return a field of the first images in the layout; it broadcasts along the classes."""
    return jnp.asarray(field)[None, :, :, None, :]


def skew_columns(field: Float[Array, "h w b"], signature: Signature) -> Float[Array, "h w e b"]:
    """Return a field of the second images, indexed by their row, the first image's column and the class of columns."""
    if field.shape[1] == 1:
        return jnp.asarray(field)[:, :, None, :]
    return jnp.asarray(field)[:, second_positions(signature.support[1], signature.spatial[1])]


def spread_column(
    field: Float[Array, "h w b"], signature: Signature, nothing: Array | None = None
) -> Float[Array, "c h w e b"]:
    """Return a field of the second images in the layout.

    Args:
        field: field of the second images.
        signature: gives the extents and the classes of the layout.
        nothing: an integer 0 whose value is unknown to the compiler, which keeps it from hoisting this gather out of a
            loop.
    """
    skewed = skew_columns(field, signature)
    if field.shape[0] == 1:
        return skewed[None]
    positions = second_positions(signature.support[0], signature.spatial[0]).T
    return skewed[positions if nothing is None else jnp.asarray(positions, jnp.int32) + nothing]


def products(
    x1: Float[Array, "h w k b"], x2: Float[Array, "h w k b"], signature: Signature
) -> Float[Array, "c h w e b"]:
    """Return the products of two batches of images, summed over channels, in the layout."""
    # One channel at a time, because a dot product over three channels is too short for a matrix unit.
    return added(
        spread_row(x1[:, :, channel]) * spread_column(x2[:, :, channel], signature) for channel in range(x1.shape[2])
    )


def variances(own: Float[Array, "c h w e b"]) -> Float[Array, "h w b"]:
    """Return the covariance of every pixel with itself from covariances of images with themselves."""
    return own[0, :, :, 0]  # class 0 is the first


def with_variances(own: Float[Array, "c h w e b"], values: Float[Array, "h w b"]) -> Float[Array, "c h w e b"]:
    """Return the covariances with the variances replaced by `values`."""
    if own.shape[0] == own.shape[3] == 1:
        return values[None, :, :, None]
    return jnp.asarray(own).at[0, :, :, 0].set(values)


def own_views(layer: Layer, state: KernelState) -> tuple[View, View]:
    """Return a layer's per-image features of images that are paired with themselves, as rows and as columns."""
    fields = layer.image_features(state)
    if not state.signature.spatial:
        return (lambda: fields), (lambda: fields)
    return (
        lambda: tuple(spread_row(field) for field in fields),
        lambda: tuple(spread_column(field, state.signature) for field in fields),
    )


def under_tap(rows: tuple[AnyWindow, int], columns: tuple[AnyWindow, int]) -> Callable[[Float[Array, "h w b"]], Array]:
    """Return a function from a field to its values under one tap of all windows, `(o, v, b)`, with 0 in the padding.

    Args:
        rows: windows along the rows, and the tap.
        columns: windows along the columns, and the tap.
    """
    (h, at_h), (w, at_w) = ((window.extent, window.positions(tap)) for window, tap in (rows, columns))
    inside = ((at_h >= 0) & (at_h < h))[:, None, None] & ((at_w >= 0) & (at_w < w))[None, :, None]
    at = at_h.clip(0, h - 1)[:, None], at_w.clip(0, w - 1)[None, :]
    return lambda field: jnp.where(inside, jnp.asarray(field)[at], 0.0)


def restrict(x: Float[Array, "c h w e b"], has: Support, wanted: Support) -> Float[Array, "d h w f b"]:
    """Return the covariances of the classes in `wanted`, which must be a subset of the classes in `has`."""
    if has[0] != wanted[0]:
        x = x[np.searchsorted(has[0], wanted[0])]
    if has[1] != wanted[1]:
        x = x[:, :, :, np.searchsorted(has[1], wanted[1])]
    return x


def to_matrix(x: Float[Array, "c h w e b"], signature: Signature) -> Float[Array, "b p q"]:
    """Return the matrix of all pixels of the first image by all pixels of the second; `x` must have every class."""
    (n, m), b = signature.spatial, x.shape[-1]
    h, w = np.arange(n), np.arange(m)
    # [h, h', w, w', b], then pixels together.
    plain = x[
        ((h[:, None] - h[None, :]) % n)[:, :, None, None],
        h[:, None, None, None],
        w[None, None, :, None],
        ((w[:, None] - w[None, :]) % m)[None, None, :, :],
    ]
    return plain.transpose(4, 0, 2, 1, 3).reshape(b, n * m, n * m)


def from_matrix(matrix: Float[Array, "b p q"], signature: Signature) -> Float[Array, "c h w e b"]:
    """Return the covariances of the classes in the signature's support; the inverse of `to_matrix`."""
    (n, m), (rows, cols) = signature.spatial, signature.support
    plain = matrix.reshape(matrix.shape[0], n, m, n, m).transpose(1, 2, 3, 4, 0)
    h, w = np.arange(n)[None, :, None, None], np.arange(m)[None, None, :, None]
    return plain[h, w, second_positions(rows, n).T[:, :, None, None], second_positions(cols, m)[None, None, :, :]]


def gather_rows(x: Float[Array, "c h w e b"], paired: PairedWindow) -> Float[Array, "d o w e b"]:
    """Return the sum over the taps of any window along the rows, gathered by a table of source positions."""
    flat = x.reshape(-1, *x.shape[2:])
    flat = jnp.concatenate([flat, jnp.zeros_like(flat[:1])])
    return _summed(flat, _table(paired, by_class=True), 0)


def gather_columns(x: Float[Array, "c h w e b"], paired: PairedWindow) -> Float[Array, "c h o d b"]:
    """Return the sum over the taps of any window along the columns, gathered by a table of source positions."""
    flat = x.reshape(*x.shape[:2], -1, x.shape[4])
    flat = jnp.concatenate([flat, jnp.zeros_like(flat[:, :, :1])], axis=2)
    return _summed(flat, _table(paired, by_class=False), 2)


def _summed(flat: Array, tables: list[np.ndarray], axis: int) -> Array:
    return added(
        jnp.take(flat, table.ravel(), axis=axis).reshape(*flat.shape[:axis], *table.shape, *flat.shape[axis + 1 :])
        for table in tables
    )


def _table(paired: PairedWindow, *, by_class: bool) -> list[np.ndarray]:
    """Return, for each pair of taps, the flat index of each output's source; the index past the end reads a zero."""
    has, extent = np.array(paired.incoming), paired.window.extent
    tables = []
    for tap, other in paired.taps:
        classes, at, inside = paired.window.sources(paired.outgoing, tap, other)
        which = np.searchsorted(has, classes).clip(0, len(has) - 1)
        index = which * extent + at if by_class else at * len(has) + which
        index = np.where(inside, index, len(has) * extent)
        tables.append(index if by_class else index.T)
    return tables


def slide_rows(x: Float[Array, "c h w e b"], paired: PairedWindow, mask: Mask) -> Float[Array, "c o w e b"]:
    """Return the sum over the shared taps of a window that keeps classes, along the rows; `pad_rows` has padded `x`."""
    return _slid(x, paired, 1, mask)


def slide_columns(x: Float[Array, "c h w e b"], paired: PairedWindow) -> Float[Array, "c h o e b"]:
    """Return the sum over the shared taps of a window that keeps classes, along the columns of a padded `x`."""
    return _slid(x, paired, 2, _mask_columns)


def slide(
    x: Float[Array, "c h w e b"], rows: PairedWindow, columns: PairedWindow, mask: Mask
) -> Float[Array, "c o v e b"]:
    """Return the sum over the shared taps of windows along both axes, with one term per pair of taps; `x` is unpadded.

    Values in the padding are read from the edge and multiplied by 0. Without a branch, a GPU reads four values at once.
    """
    by_column = [(_within(columns, tap), inside) for tap, inside in _taps_inside(columns, x)]

    def along_columns(row: np.ndarray) -> Array:
        return added(_masked(x[:, row[:, None], column], inside, _mask_columns) for column, inside in by_column)

    return added(_masked(along_columns(_within(rows, tap)), inside, mask) for tap, inside in _taps_inside(rows, x))


def _within(paired: PairedWindow, tap: int) -> np.ndarray:
    """Return the positions under a tap, `(positions,)`, with those in the padding moved to the edge."""
    return paired.window.positions(tap).clip(0, paired.window.extent - 1).astype(np.int32)


def _masked(part: Array, inside: np.ndarray, mask: Mask) -> Array:
    return part if inside.all() else part * mask(inside)


def _taps_inside(paired: PairedWindow, x: Array) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each shared tap with a mask `(classes, positions)`: 1 inside both images, 0 in the padding of either."""
    for tap, _ in paired.taps:
        yield tap, paired.window.sources(paired.outgoing, tap, tap)[2].astype(x.dtype)


def _mask_columns(inside: np.ndarray) -> Array:
    return jnp.asarray(inside.T[:, :, None])


def _slid(x: Array, paired: PairedWindow, axis: int, mask: Mask) -> Array:
    window, parts = paired.window, []
    assert isinstance(window, Window)
    for tap, _ in paired.taps:
        last = tap + window.stride * (window.out - 1) + 1
        part = x[(slice(None),) * axis + (slice(tap, last, window.stride),)]
        _, at, inside = window.sources(paired.outgoing, tap, tap)
        # The value is already 0 where the first image's position is in the padding.
        if ((at >= 0) & (at < window.extent) & ~inside).any():
            part = part * mask(inside.astype(x.dtype))
        parts.append(part)
    return added(parts)


def pad_rows(x: Float[Array, "c h w e b"], paired: PairedWindow) -> Float[Array, "c o w e b"]:
    """Return the covariances padded along the rows: with zeros, or from the other end if the padding is circular."""
    return _padded(x, paired, 1)


def pad_columns(x: Float[Array, "c h w e b"], paired: PairedWindow) -> Float[Array, "c h o e b"]:
    """Return the covariances padded along the columns: with zeros, or from the other end if the padding is circular."""
    return _padded(x, paired, 2)


def _padded(x: Array, paired: PairedWindow, axis: int) -> Array:
    assert isinstance(paired.window, Window)
    low, high = paired.window.pads
    if low == high == 0:
        return x
    if high < 0:
        x, high = x[(slice(None),) * axis + (slice(0, high),)], 0
    widths = [(0, 0)] * x.ndim
    widths[axis] = (low, high)
    return jnp.pad(x, widths, mode="wrap" if paired.window.padding == "CIRCULAR" else "constant")
