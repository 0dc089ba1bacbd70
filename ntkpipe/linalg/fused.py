"""Both products of a tile from one reading of it, compiled for the processor at hand by Numba.

BLAS reads a tile twice, converts float32 to float64 into a buffer first, and is made for wide blocks: with nine vectors it reaches a
sixth of the processor's rate. Here four rows of the tile meet three vectors at a time: their twelve sums stay in registers, and the
mirrored product is added to rows that stay in the cache. What a tile costs, by `benchmarks/passes.py`, is in docs/performance.md.

Numba is the extra `fast`. Without it `products.py` uses BLAS.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np
from numba import njit

# Sums may be reordered, which vector registers need. Nothing is assumed about infinities or NaN.
_OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}

# Rows of the mirrored product do not fall on the same lines of the cache.
_PADDING = 72


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Compiled at the first call; kept on disk for other processes where a folder can be written."""
    function = inspect.unwrap(function)  # tests wrap functions to check types
    try:
        return njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # no folder for the cache
        return njit(**_OPTIONS)(function)


def both(panel: np.ndarray, x: np.ndarray, row: int, col: int) -> tuple[np.ndarray, np.ndarray]:
    """The product of a panel with its columns' part of `x`, and of its transpose with its rows' part.

    Args:
        panel: `(h, w)` float32 or float64; copied where it is not contiguous.
        x: `(k, n)`, contiguous, float32 or float64, which is the precision of the products; `k` is at least 2.
        row: of `x`'s columns that belong to the panel's first row.
        col: likewise, to its first column.

    Returns:
        `x[:, col:col + w] @ panel.T`, `(k, h)`, and `x[:, row:row + h] @ panel`, `(k, w)`.
    """
    # One type for Numba, whatever the tile: contiguous and read-only.
    panel, x = np.ascontiguousarray(panel).view(), x.view()
    panel.flags.writeable = x.flags.writeable = False
    (h, w), k = panel.shape, len(x)
    own = np.zeros((k, -(-h // 4) * 4), x.dtype)
    mirrored = np.zeros((k, w + _PADDING), x.dtype)
    _both(panel, x, row, col, own, mirrored)
    return own[:, :h], mirrored[:, :w]


@_compiled
def _both(panel, x, row, col, own, mirrored):
    h, w = panel.shape
    k = x.shape[0]
    zero = x.dtype.type(0)
    threes = k - 2 * ((2 * k) % 3)  # of k = 3 a + 2 b with the least b
    for i in range(0, h, 4):
        # Rows past the last one repeat it and weigh nothing; their sums are dropped.
        a0, a1 = panel[i], panel[min(i + 1, h - 1)]
        a2, a3 = panel[min(i + 2, h - 1)], panel[min(i + 3, h - 1)]
        for c in range(0, threes, 3):
            x0, x1, x2 = x[c, col : col + w], x[c + 1, col : col + w], x[c + 2, col : col + w]
            z0, z1, z2 = mirrored[c], mirrored[c + 1], mirrored[c + 2]
            w00, w10, w20 = x[c, row + i], x[c + 1, row + i], x[c + 2, row + i]
            w01 = w02 = w03 = w11 = w12 = w13 = w21 = w22 = w23 = zero
            if i + 1 < h:
                w01, w11, w21 = x[c, row + i + 1], x[c + 1, row + i + 1], x[c + 2, row + i + 1]
            if i + 2 < h:
                w02, w12, w22 = x[c, row + i + 2], x[c + 1, row + i + 2], x[c + 2, row + i + 2]
            if i + 3 < h:
                w03, w13, w23 = x[c, row + i + 3], x[c + 1, row + i + 3], x[c + 2, row + i + 3]
            s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = s20 = s21 = s22 = s23 = zero
            for j in range(w):
                b0, b1 = x.dtype.type(a0[j]), x.dtype.type(a1[j])
                b2, b3 = x.dtype.type(a2[j]), x.dtype.type(a3[j])
                v0, v1, v2 = x0[j], x1[j], x2[j]
                s00 += b0 * v0
                s01 += b1 * v0
                s02 += b2 * v0
                s03 += b3 * v0
                s10 += b0 * v1
                s11 += b1 * v1
                s12 += b2 * v1
                s13 += b3 * v1
                s20 += b0 * v2
                s21 += b1 * v2
                s22 += b2 * v2
                s23 += b3 * v2
                z0[j] += w00 * b0 + w01 * b1 + w02 * b2 + w03 * b3
                z1[j] += w10 * b0 + w11 * b1 + w12 * b2 + w13 * b3
                z2[j] += w20 * b0 + w21 * b1 + w22 * b2 + w23 * b3
            own[c, i], own[c, i + 1], own[c, i + 2], own[c, i + 3] = s00, s01, s02, s03
            own[c + 1, i], own[c + 1, i + 1], own[c + 1, i + 2], own[c + 1, i + 3] = s10, s11, s12, s13
            own[c + 2, i], own[c + 2, i + 1], own[c + 2, i + 2], own[c + 2, i + 3] = s20, s21, s22, s23
        for c in range(threes, k, 2):
            x0, x1 = x[c, col : col + w], x[c + 1, col : col + w]
            z0, z1 = mirrored[c], mirrored[c + 1]
            w00, w10 = x[c, row + i], x[c + 1, row + i]
            w01 = w02 = w03 = w11 = w12 = w13 = zero
            if i + 1 < h:
                w01, w11 = x[c, row + i + 1], x[c + 1, row + i + 1]
            if i + 2 < h:
                w02, w12 = x[c, row + i + 2], x[c + 1, row + i + 2]
            if i + 3 < h:
                w03, w13 = x[c, row + i + 3], x[c + 1, row + i + 3]
            s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = zero
            for j in range(w):
                b0, b1 = x.dtype.type(a0[j]), x.dtype.type(a1[j])
                b2, b3 = x.dtype.type(a2[j]), x.dtype.type(a3[j])
                v0, v1 = x0[j], x1[j]
                s00 += b0 * v0
                s01 += b1 * v0
                s02 += b2 * v0
                s03 += b3 * v0
                s10 += b0 * v1
                s11 += b1 * v1
                s12 += b2 * v1
                s13 += b3 * v1
                z0[j] += w00 * b0 + w01 * b1 + w02 * b2 + w03 * b3
                z1[j] += w10 * b0 + w11 * b1 + w12 * b2 + w13 * b3
            own[c, i], own[c, i + 1], own[c, i + 2], own[c, i + 3] = s00, s01, s02, s03
            own[c + 1, i], own[c + 1, i + 1], own[c + 1, i + 2], own[c + 1, i + 3] = s10, s11, s12, s13
