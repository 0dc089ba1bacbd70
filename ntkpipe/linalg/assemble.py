"""Tiles as they are meant: the lower triangle is the matrix."""

from __future__ import annotations

import numpy as np

from ntkpipe.tiles.matrix import TileMatrix


def read_tile(matrix: TileMatrix, i: int, j: int) -> np.ndarray:
    """Tile `(i, j)`; one on the diagonal of a symmetric matrix with its lower triangle mirrored.

    Both triangles of a diagonal tile were computed, and differ by rounding. A matrix that is symmetric in every bit is
    one matrix to all solvers: otherwise Lanczos and a dense solver would differ by the rounding of float32 tiles.
    """
    tile = matrix.read(i, j)
    if i == j and matrix.grid.symmetric:
        lower = np.tril(tile)
        return lower + np.tril(tile, -1).T
    return tile


def read_rows(matrix: TileMatrix, indices: np.ndarray) -> np.ndarray:
    """Rows `(m, cols)` float64 of a rectangular matrix, reading the rows of tiles that hold them, tile by tile.

    Raises:
        ValueError: if the matrix is symmetric: half of its rows lie in columns of tiles (`TileOperator.rows`).
    """
    grid, indices = matrix.grid, np.asarray(indices, dtype=np.int64)
    if grid.symmetric:
        raise ValueError("rows of a symmetric matrix are read with an operator")
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
        dtype: of the result.

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
    """(n, k) unit vectors: a kernel times them is its columns `rows` (k,) as they are stored."""
    units = np.zeros((n, len(rows)))
    units[rows, np.arange(len(rows))] = 1.0
    return units
