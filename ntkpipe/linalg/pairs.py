"""Upper bounds on the smallest eigenvalue from pairs of rows.

For a symmetric matrix A with `a = A_ii`, `b = A_jj` and `c = A_ij`, the vectors `(e_i -+ e_j) / sqrt(2)` have the Rayleigh
quotients `(a + b) / 2 -+ c`. So the smallest eigenvalue is at most `(a + b) / 2 - |c|`. Nearly equal points cause the
smallest eigenvalues of kernels. A Krylov space does not find them if its start has no component along `e_i - e_j`, as for
equal labels.
"""

from __future__ import annotations

import math

import numpy as np

_PANEL_BYTES = 1 << 20


def pair_bound(tile: np.ndarray, rows: np.ndarray, cols: np.ndarray, groups: tuple[np.ndarray, np.ndarray]) -> float:
    """The smallest `(a + b) / 2 - |c|` over the entries c of a tile; inf if there are none.

    The search uses the precision of the tile, and the smallest value of each panel is recomputed in float64.

    Args:
        tile: (h, w) entries of the matrix.
        rows: (h,) float64 diagonal of the matrix at the rows of the tile.
        cols: (w,) float64 diagonal of the matrix at the columns of the tile.
        groups: (h,) and (w,) integers. Entries whose row and column are in the same group are skipped.
    """
    height, width = tile.shape
    step = max(1, _PANEL_BYTES // (tile.dtype.itemsize * width))
    buffer = np.empty((min(step, height), width), dtype=tile.dtype)
    narrow_rows, narrow_cols = rows.astype(tile.dtype)[:, None], cols.astype(tile.dtype)
    shared = np.flatnonzero(np.isin(groups[0], groups[1]))
    least = math.inf
    for low in range(0, height, step):
        panel = tile[low : low + step]
        seen = np.abs(panel, out=buffer[: len(panel)])
        seen *= -2
        seen += narrow_cols
        seen += narrow_rows[low : low + step]
        for i in shared[(shared >= low) & (shared < low + step)]:
            seen[i - low, groups[1] == groups[0][i]] = np.inf
        i, j = np.unravel_index(np.argmin(seen), seen.shape)
        if np.isfinite(seen[i, j]):
            least = min(least, float((rows[low + i] + cols[j]) / 2 - abs(float(panel[i, j]))))
    return least
