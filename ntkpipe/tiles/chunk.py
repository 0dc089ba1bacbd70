"""Casts, checks and pads the values of a tile for a stored chunk. The functions take and return arrays, without I/O."""

from __future__ import annotations

import numpy as np

from ntkpipe.errors import DataError


def to_chunk(array: np.ndarray, chunk: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Convert an array to its stored form: `dtype`, C order, padded with NaN to the shape `chunk`.

    The array is copied only if it has to change. Values that are not finite, before or after the cast, are kept;
    `finite_error` reports them.
    """
    with np.errstate(over="ignore"):  # float64 values beyond float32 become infinite, which finite_error detects
        values = np.ascontiguousarray(array, dtype)
    if values.shape == chunk:
        return values
    padded = np.full(chunk, np.nan, dtype)
    padded[inside(array.shape)] = values
    return padded


def inside(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Return the index of the leading part of a chunk that belongs to the matrix."""
    return tuple(slice(n) for n in shape)


def finite_error(values: np.ndarray, kernel: str, block: str, i: int, j: int, edge: int) -> DataError | None:
    """Return an error that names tile and images if a value is not finite; None if all values are finite.

    Args:
        values: values of the tile, without padding.
        kernel: name of the kernel, such as `nngp` or `ntk`.
        block: `train`, `test` or `diagonal/...`.
        i: row of tiles.
        j: column of tiles.
        edge: rows per tile.
    """
    finite = np.isfinite(values)
    if finite.all():
        return None
    text = f"tile ({i}, {j}) of {kernel}/{block} holds {finite.size - int(finite.sum()):,} non-finite values."
    kind = "test" if block.endswith("test") else "training"
    bad = np.flatnonzero(~finite.reshape(len(finite), -1).any(axis=1)) + i * edge
    if not len(bad) and finite.ndim == 2:
        bad, kind = np.flatnonzero(~finite.any(axis=0)) + j * edge, "training"
    if len(bad):
        rows = f"{bad[0]}" if len(bad) == 1 else f"{bad[0]}-{bad[-1]}"
        return DataError(
            f"{text} Input rows {rows} ({len(bad)} {kind} points, in stored order) give no finite value: "
            "they hold NaN, or are so large that this precision overflows. Clean them, set data.drop_invalid=true, or "
            "kernel.dtype=float64."
        )
    return DataError(f"{text} Pixels are too large for this precision: standardise them, or set kernel.dtype=float64.")


def same_but_rounding(stored: np.ndarray, mine: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Return whether two computations of one tile agree up to the order of summation and the hardware."""
    part = inside(shape)
    # float32 kernels of any two devices agree to 1e-4 of the largest value. Tiles of other images differ by over 1e-3.
    return bool(np.abs(stored[part] - mine[part]).max() <= 1e-3 * np.abs(mine[part]).max())
