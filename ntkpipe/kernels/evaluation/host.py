"""Evaluation on the CPU, one strip of rows after another: inner products by BLAS, then one compiled elementwise map.

For a 2048 x 2048 float32 tile of a network of depth 3 on one core, the map takes 49 ms in strips of 2 MiB and 15 ms in
strips of 1 MiB or less, whose intermediates stay in the L2 cache. The products are faster in taller strips, because
BLAS packs all columns again for each strip, and its threads wait for each other at the end of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ntkpipe.kernels.accelerator import default_platform
from ntkpipe.kernels.state import Array

PairMap = Callable[[np.ndarray, Any, Any], Sequence[Array]]
Watch = Callable[[np.ndarray, int], None]

_PRODUCT_BYTES = 4 << 20
_MAP_BYTES = 1 << 20
_ALIGNMENT = 64  # bytes; JAX borrows NumPy memory with this alignment and copies all other memory


def is_default() -> bool:
    """Return whether JAX computes on the CPU by default."""
    device = getattr(jax.config, "jax_default_device", None)  # jax.default_device(...) of the caller
    platform = default_platform() if device is None else getattr(device, "platform", device)
    return platform == "cpu"


def strip_rows(rows: int, cols: int, itemsize: int) -> tuple[int, int]:
    """Return the number of rows in a strip of products (about 4 MiB) and in a strip of the map (about 1 MiB).

    Both are powers of two, at least 64 and 16 unless the block has fewer rows. The second divides the first.
    """
    product = max(_PRODUCT_BYTES // (cols * itemsize), 64)
    mapped = max(_MAP_BYTES // (cols * itemsize), 16)
    enough = 1 << (rows - 1).bit_length()
    return min(1 << (product.bit_length() - 1), enough), min(1 << (mapped.bit_length() - 1), enough)


def evaluate(
    pair_map: PairMap,
    x1: np.ndarray,
    x2: np.ndarray | None,
    rows: Any,
    columns: Any,
    *,
    results: int,
    out_dtype: Any,
    pad_to: int | None,
    watch: Watch,
) -> np.ndarray:
    """Return all kernels of every pair of rows.

    Args:
        pair_map: maps inner products `(rows, cols)` and trees of arrays `(rows,)`, `(cols,)` to the kernels.
        x1: flattened row images `(n1, d)`, contiguous.
        x2: flattened column images `(n2, d)`. None pairs `x1` with itself: the function then computes only the lower
            triangle of the products, and the result is exactly symmetric. The caller sets its diagonal.
        rows: per-image features of the row images, a tree of arrays `(n1, ...)`.
        columns: per-image features of the column images, a tree of arrays `(n2, ...)`.
        results: number of kernels that the map returns.
        out_dtype: dtype of the result.
        pad_to: number of rows and columns to compile for, so that smaller blocks at the edge need no compilation of
            their own. The map computes the padding; the inner products do not.
        watch: called with each strip of inner products and its first row, while the strip is in the cache.

    Returns:
        The kernels, `(results, n1, n2)`.
    """
    n1, n2 = len(x1), len(x1 if x2 is None else x2)
    cols = max(n2, pad_to or 0)
    step, part = strip_rows(max(n1, pad_to or 0), cols, x1.itemsize)
    products = _aligned_zeros((step, cols), x1.dtype)
    all_rows = jax.tree.map(lambda a: _padded(a, -(-n1 // step) * step), rows)
    all_columns = jax.tree.map(lambda a: _padded(a, cols), columns)
    out = np.empty((results, n1, n2), out_dtype)
    others = x1 if x2 is None else x2
    for start in range(0, n1, step):
        stop = min(start + step, n1)
        width = n2 if x2 is not None else stop
        np.matmul(x1[start:stop], others[:width].T, out=products[: stop - start, :width])
        running: tuple[int, Sequence[Array]] | None = None
        for row in range(start, stop, part):
            of_rows = jax.tree.map(lambda a: a[row : row + part], all_rows)  # noqa: B023 - used at once
            made = pair_map(products[row - start : row - start + part], of_rows, all_columns)
            watch(products[row - start : min(row + part, stop) - start, :width], row)
            # JAX computes this strip in its own thread while this thread copies the strip before it.
            if running is not None:
                _store(out, *running, stop, width)
            running = row, made
        # Wait for the last strip: the next products overwrite the memory that the map reads.
        if running is not None:
            _store(out, *running, stop, width)
        if x2 is None:
            for result in out:
                _mirror(result, start, stop)
    return out


def _store(results: np.ndarray, row: int, made: Sequence[Array], stop: int, width: int) -> None:
    """Copy a strip that begins at `row` into the results, cut at row `stop` and column `width`."""
    for result, strip in zip(results, made, strict=True):
        rows = min(stop - row, strip.shape[0])
        result[row : row + rows, :width] = np.asarray(strip)[:rows, :width]


def _mirror(result: np.ndarray, start: int, stop: int) -> None:
    """Copy the finished rows `start:stop` of the lower triangle to the upper one."""
    result[:start, start:stop] = result[start:stop, :start].T
    square = result[start:stop, start:stop]
    square[:] = np.tril(square) + np.tril(square, -1).T


def _padded(a: np.ndarray, count: int) -> np.ndarray:
    out = np.zeros((count, *a.shape[1:]), a.dtype)
    out[: len(a)] = a
    return out


def _aligned_zeros(shape: tuple[int, int], dtype: np.dtype[Any]) -> np.ndarray:
    size = shape[0] * shape[1] * dtype.itemsize
    raw = np.zeros(size + _ALIGNMENT, np.uint8)
    offset = -raw.ctypes.data % _ALIGNMENT
    return raw[offset : offset + size].view(dtype).reshape(shape)
