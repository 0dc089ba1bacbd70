"""Reads tiles of symmetric matrices. Only the lower triangle is used."""

from __future__ import annotations

import numpy as np

from ntkpipe.tiles.matrix import TileMatrix


def read_tile(matrix: TileMatrix, i: int, j: int) -> np.ndarray:
    """Read tile `(i, j)`. In diagonal tiles of a symmetric matrix, the upper triangle is replaced by the lower one.

    Both triangles of a diagonal tile were computed, and they differ by rounding. An exactly symmetric matrix is the same
    for all solvers; otherwise Lanczos and a dense solver would differ by the rounding of float32 tiles.
    """
    tile = matrix.read(i, j)
    if i == j and matrix.grid.symmetric:
        lower = np.tril(tile)
        return lower + np.tril(tile, -1).T
    return tile


def read_rows(matrix: TileMatrix, indices: np.ndarray) -> np.ndarray:
    """Rows (m, cols) of a rectangular matrix in float64, read tile by tile.

    Raises:
        ValueError: if the matrix is symmetric, because half of each row is in columns of tiles (`TileOperator.rows`).
    """
    grid, indices = matrix.grid, np.asarray(indices, dtype=np.int64)
    if grid.symmetric:
        raise ValueError("rows of a symmetric matrix must be read with an operator")
    out = np.empty((len(indices), grid.cols))
    for i in np.unique(indices // grid.edge).tolist():
        inside = np.flatnonzero(indices // grid.edge == i)
        for j in range(grid.tile_cols):
            where = grid.tile(i, j)
            out[inside, where.col_start : where.col_stop] = matrix.read(i, j)[indices[inside] - where.row_start]
    return out


def assemble(matrix: TileMatrix, dtype: str | np.dtype | type = np.float64) -> np.ndarray:
    """The whole matrix in memory.

    Args:
        matrix: symmetric (both triangles are filled) or rectangular.
        dtype: dtype of the result.

    Returns:
        `(rows, cols)`, C order.
    """
    grid = matrix.grid
    out = np.empty((grid.rows, grid.cols), dtype=dtype)
    for t in grid:
        tile = read_tile(matrix, t.i, t.j)
        out[t.row_start : t.row_stop, t.col_start : t.col_stop] = tile
        if grid.symmetric and t.i != t.j:
            out[t.col_start : t.col_stop, t.row_start : t.row_stop] = tile.T
    return out


def unit_vectors(rows: np.ndarray, n: int) -> np.ndarray:
    """Unit vectors (n, k). A kernel times them gives its stored columns `rows` (k,)."""
    units = np.zeros((n, len(rows)))
    units[rows, np.arange(len(rows))] = 1.0
    return units
