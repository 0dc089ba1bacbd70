"""The protocol of matrices for the solvers, which are read by tiles from any source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from ntkpipe.tiles.grid import TileGrid


@runtime_checkable
class TileMatrix(Protocol):
    """A matrix that is read by tiles. A symmetric matrix holds only the lower triangle.

    Implementations are cheap to pickle, because they hold addresses and no data. Workers receive them and read tiles by
    themselves.
    """

    @property
    def grid(self) -> TileGrid:
        """The division into tiles."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the tiles."""
        ...

    def read(self, i: int, j: int) -> np.ndarray:
        """Read tile `(i, j)`, cut to `grid.tile(i, j).shape`, in `dtype` and C order, and check it against its receipt.

        Raises:
            IndexError: if the address is outside the grid.
            IncompleteError: if the tile is not computed yet.
            CorruptionError: if the stored values disagree with the receipt.
        """
        ...

    def leading(self, rows: int, cols: int | None = None) -> TileMatrix:
        """Return the leading block `[:rows, :cols]` of the same matrix."""
        ...


@dataclass(frozen=True)
class InMemoryTiles:
    """A dense array seen as tiles, for small problems and tests.

    Args:
        array: `(rows, cols)` values. A symmetric matrix has both triangles, of which only the lower one is read.
        grid: the tile grid, of the same shape or smaller (a leading block).
    """

    array: np.ndarray
    grid: TileGrid

    def __post_init__(self) -> None:
        if self.array.shape[0] < self.grid.rows or self.array.shape[1] < self.grid.cols:
            raise ValueError(f"array of shape {self.array.shape} is smaller than {self.grid}")

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the array."""
        return self.array.dtype

    def read(self, i: int, j: int) -> np.ndarray:
        """Read tile `(i, j)`, as `TileMatrix.read` does."""
        t = self.grid.tile(i, j)
        return np.ascontiguousarray(self.array[t.row_start : t.row_stop, t.col_start : t.col_stop])

    def leading(self, rows: int, cols: int | None = None) -> InMemoryTiles:
        """Return the leading block `[:rows, :cols]` without a copy."""
        return InMemoryTiles(self.array, self.grid.leading(rows, cols))
