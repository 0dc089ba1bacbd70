"""Covariances by classes of pixel pairs: `(c, h, w, e, b)`, as `KernelState` describes; and what moves values in and out."""

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
"""From a constant `(classes, positions)` of the first axis to that of the classes at hand, `(c, h, 1, 1, 1)`."""


def added(parts: Iterable[Array]) -> Array:
    """The sum of at least one array, from the first on."""
    return reduce(operator.add, parts)


def second_positions(classes: tuple[int, ...], extent: int) -> np.ndarray:
    """`(extent, len(classes))`: position in the second image of each class at each position of the first."""
    return (np.arange(extent)[:, None] - np.array(classes)[None, :]) % extent


def spread_row(field: Float[Array, "h w b"]) -> Float[Array, "1 h w 1 b"]:
    """A field of the first images at its places in the layout, to be broadcast along classes."""
    return jnp.asarray(field)[None, :, :, None, :]


def skew_columns(field: Float[Array, "h w b"], signature: Signature) -> Float[Array, "h w e b"]:
    """A field of the second images by their rows and, of columns, by the first image's column and the class."""
    if field.shape[1] == 1:
        return jnp.asarray(field)[:, :, None, :]
    return jnp.asarray(field)[:, second_positions(signature.support[1], signature.spatial[1])]


def spread_column(
    field: Float[Array, "h w b"], signature: Signature, nothing: Array | None = None
) -> Float[Array, "c h w e b"]:
    """A field of the second images at its places in the layout.

    Args:
        field: of the second images.
        signature: which places there are.
        nothing: an integer 0 of which the compiler does not know that it is: so it cannot do this once for all that follows.
    """
    skewed = skew_columns(field, signature)
    if field.shape[0] == 1:
        return skewed[None]
    positions = second_positions(signature.support[0], signature.spatial[0]).T
    return skewed[positions if nothing is None else jnp.asarray(positions, jnp.int32) + nothing]


def products(
    x1: Float[Array, "h w k b"], x2: Float[Array, "h w k b"], signature: Signature
) -> Float[Array, "c h w e b"]:
    """Channel sums of products of two batches of images, in the layout."""
    # One channel at a time: a dot product over three channels is no work for a matrix unit.
    return added(
        spread_row(x1[:, :, channel]) * spread_column(x2[:, :, channel], signature) for channel in range(x1.shape[2])
    )


def variances(own: Float[Array, "c h w e b"]) -> Float[Array, "h w b"]:
    """The covariance of every pixel with itself, of images with themselves."""
    return own[0, :, :, 0]  # class 0 comes first


def with_variances(own: Float[Array, "c h w e b"], values: Float[Array, "h w b"]) -> Float[Array, "c h w e b"]:
    """The same with other variances."""
    if own.shape[0] == own.shape[3] == 1:
        return values[None, :, :, None]
    return jnp.asarray(own).at[0, :, :, 0].set(values)


def own_views(layer: Layer, state: KernelState) -> tuple[View, View]:
    """What a layer sees of the images of an own block, as the rows and as the columns of its pairs."""
    fields = layer.image_features(state)
    if not state.signature.spatial:
        return (lambda: fields), (lambda: fields)
    return (
        lambda: tuple(spread_row(field) for field in fields),
        lambda: tuple(spread_column(field, state.signature) for field in fields),
    )


def under_tap(rows: tuple[AnyWindow, int], columns: tuple[AnyWindow, int]) -> Callable[[Float[Array, "h w b"]], Array]:
    """From a field to what one tap of all windows covers of it, `(o, v, b)`: 0 in the padding.

    Args:
        rows: windows along the rows, and the tap.
        columns: likewise.
    """
    (h, at_h), (w, at_w) = ((window.extent, window.positions(tap)) for window, tap in (rows, columns))
    inside = ((at_h >= 0) & (at_h < h))[:, None, None] & ((at_w >= 0) & (at_w < w))[None, :, None]
    at = at_h.clip(0, h - 1)[:, None], at_w.clip(0, w - 1)[None, :]
    return lambda field: jnp.where(inside, jnp.asarray(field)[at], 0.0)


def restrict(x: Float[Array, "c h w e b"], has: Support, wanted: Support) -> Float[Array, "d h w f b"]:
    """The classes of `wanted`, all of which it has."""
    if has[0] != wanted[0]:
        x = x[np.searchsorted(has[0], wanted[0])]
    if has[1] != wanted[1]:
        x = x[:, :, :, np.searchsorted(has[1], wanted[1])]
    return x


def to_matrix(x: Float[Array, "c h w e b"], signature: Signature) -> Float[Array, "b p q"]:
    """All pixels of the first image by all of the second; every class must be there."""
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
    """The inverse of `to_matrix`, for the classes of the signature's support."""
    (n, m), (rows, cols) = signature.spatial, signature.support
    plain = matrix.reshape(matrix.shape[0], n, m, n, m).transpose(1, 2, 3, 4, 0)
    h, w = np.arange(n)[None, :, None, None], np.arange(m)[None, None, :, None]
    return plain[h, w, second_positions(rows, n).T[:, :, None, None], second_positions(cols, m)[None, None, :, :]]


def gather_rows(x: Float[Array, "c h w e b"], paired: PairedWindow) -> Float[Array, "d o w e b"]:
    """Sum over the taps of any window along the rows, by a table of where each value comes from."""
    flat = x.reshape(-1, *x.shape[2:])
    flat = jnp.concatenate([flat, jnp.zeros_like(flat[:1])])
    return _summed(flat, _table(paired, by_class=True), 0)


def gather_columns(x: Float[Array, "c h w e b"], paired: PairedWindow) -> Float[Array, "c h o d b"]:
    """Likewise along the columns."""
    flat = x.reshape(*x.shape[:2], -1, x.shape[4])
    flat = jnp.concatenate([flat, jnp.zeros_like(flat[:, :, :1])], axis=2)
    return _summed(flat, _table(paired, by_class=False), 2)


def _summed(flat: Array, tables: list[np.ndarray], axis: int) -> Array:
    return added(
        jnp.take(flat, table.ravel(), axis=axis).reshape(*flat.shape[:axis], *table.shape, *flat.shape[axis + 1 :])
        for table in tables
    )


def _table(paired: PairedWindow, *, by_class: bool) -> list[np.ndarray]:
    """Per pair of taps the flat index of each output's source; the one past the end is zero."""
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
    """Sum over the shared taps of a window that keeps classes, along the rows. `x` is padded (`pad_rows`)."""
    return _slid(x, paired, 1, mask)


def slide_columns(x: Float[Array, "c h w e b"], paired: PairedWindow) -> Float[Array, "c h o e b"]:
    """Likewise along the columns."""
    return _slid(x, paired, 2, _mask_columns)


def slide(
    x: Float[Array, "c h w e b"], rows: PairedWindow, columns: PairedWindow, mask: Mask
) -> Float[Array, "c o v e b"]:
    """Along both in one go, a term for each pair of taps. `x` is not padded.

    What lies in the padding is read from the edge and multiplied by 0: a GPU reads four values at once where no branch is in
    the way.
    """
    by_column = [(_within(columns, tap), inside) for tap, inside in _taps_inside(columns, x)]

    def along_columns(row: np.ndarray) -> Array:
        return added(_masked(x[:, row[:, None], column], inside, _mask_columns) for column, inside in by_column)

    return added(_masked(along_columns(_within(rows, tap)), inside, mask) for tap, inside in _taps_inside(rows, x))


def _within(paired: PairedWindow, tap: int) -> np.ndarray:
    """`(positions,)` under a tap, those in the padding moved to the edge."""
    return paired.window.positions(tap).clip(0, paired.window.extent - 1).astype(np.int32)


def _masked(part: Array, inside: np.ndarray, mask: Mask) -> Array:
    return part if inside.all() else part * mask(inside)


def _taps_inside(paired: PairedWindow, x: Array) -> Iterator[tuple[int, np.ndarray]]:
    """Each shared tap, and `(classes, positions)` 1 where both images have it and 0 in the padding of either."""
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
        # Where the first image's position is in the padding, the value is 0 already.
        if ((at >= 0) & (at < window.extent) & ~inside).any():
            part = part * mask(inside.astype(x.dtype))
        parts.append(part)
    return added(parts)


def pad_rows(x: Float[Array, "c h w e b"], paired: PairedWindow) -> Float[Array, "c o w e b"]:
    """Zeros, or the other end, where windows reach beyond the rows."""
    return _padded(x, paired, 1)


def pad_columns(x: Float[Array, "c h w e b"], paired: PairedWindow) -> Float[Array, "c h o e b"]:
    """Likewise for the columns."""
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
