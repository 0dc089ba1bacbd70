"""Evaluation on the CPU: inner products by BLAS and one compiled elementwise map, strip of rows by strip of rows.

Measured on two cores for a 2048 x 2048 float32 tile of a network of depth 3: the map takes 45 ms over the whole tile,
whose intermediates and fresh result pages go through main memory, and 16 ms in strips that stay in cache, one
nonlinearity at a time. OpenBLAS keeps its full rate (240 GF/s there; XLA's is 1.5 times lower) down to strips of 256 rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ntkpipe.kernels.state import Kernels

PairMap = Callable[[np.ndarray, np.ndarray, np.ndarray], Kernels]

_STRIP_BYTES = 2 << 20
_ALIGNMENT = 64  # bytes; JAX borrows NumPy memory aligned so, and copies any other


def is_default() -> bool:
    """True if JAX would compute on the CPU."""
    device = getattr(jax.config, "jax_default_device", None)  # jax.default_device(...) of the caller
    platform = jax.default_backend() if device is None else getattr(device, "platform", device)
    return platform == "cpu"


def strip_rows(rows: int, cols: int, itemsize: int) -> int:
    """Rows of one strip: about 2 MiB of them, a power of two, at least 32 and no more than the block needs."""
    fit = max(_STRIP_BYTES // (cols * itemsize), 32)
    return min(1 << (fit.bit_length() - 1), rows)


def evaluate(
    pair_map: PairMap,
    x1: np.ndarray,
    x2: np.ndarray | None,
    p: np.ndarray,
    q: np.ndarray,
    *,
    out_dtype: Any,
    pad_to: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Both kernels of every pair of rows.

    Args:
        pair_map: from inner products `(rows, cols)` and squared norms `(rows,)`, `(cols,)` to both kernels.
        x1: flattened row images `(n1, d)`, contiguous.
        x2: flattened column images `(n2, d)`; None pairs `x1` with itself: only the lower triangle of products is
            then formed, and the result is symmetric to the last bit. Its diagonal is for the caller to set.
        p: squared norms of `x1`.
        q: squared norms of the column images.
        out_dtype: of the result.
        pad_to: compile for blocks of so many rows and columns, so that ragged ones at the edge need no compilation
            of their own. Only the map sees the padding, never the inner products.

    Returns:
        NNGP and NTK, `(n1, n2)` each.
    """
    n1, n2 = len(p), len(q)
    cols = max(n2, pad_to or 0)
    step = strip_rows(max(n1, pad_to or 0), cols, x1.itemsize)
    # Two buffers in turn: the map of a strip may still be running when the next one's products are formed.
    buffers = [_aligned_zeros((step, cols), x1.dtype) for _ in range(2)]
    all_p, all_q = np.zeros(-(-n1 // step) * step, p.dtype), np.zeros(cols, q.dtype)
    all_p[:n1], all_q[:n2] = p, q
    results = np.empty((2, n1, n2), out_dtype)
    for turn, start in enumerate(range(0, n1, step)):
        stop = min(start + step, n1)
        products = buffers[turn % 2]
        width = n2 if x2 is not None else stop
        columns = x1 if x2 is None else x2
        np.matmul(x1[start:stop], columns[:width].T, out=products[: stop - start, :width])
        made = pair_map(products, all_p[start : start + step], all_q)
        for result, strip in zip(results, made, strict=True):
            result[start:stop, :width] = np.asarray(strip)[: stop - start, :width]
            if x2 is None:
                _mirror(result, start, stop)
    return results[0], results[1]


def _mirror(result: np.ndarray, start: int, stop: int) -> None:
    """Copy the finished rows `start:stop` of the lower triangle to the upper one."""
    result[:start, start:stop] = result[start:stop, :start].T
    square = result[start:stop, start:stop]
    upper = np.triu_indices(stop - start, 1)
    square[upper] = square.T[upper]


def _aligned_zeros(shape: tuple[int, int], dtype: np.dtype[Any]) -> np.ndarray:
    size = shape[0] * shape[1] * dtype.itemsize
    raw = np.zeros(size + _ALIGNMENT, np.uint8)
    offset = -raw.ctypes.data % _ALIGNMENT
    return raw[offset : offset + size].view(dtype).reshape(shape)
