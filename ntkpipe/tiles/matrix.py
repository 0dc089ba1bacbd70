"""What the solvers see of a matrix: whole tiles by address, wherever they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from ntkpipe.tiles.grid import TileGrid


@runtime_checkable
class TileMatrix(Protocol):
    """A matrix read by tiles; symmetric ones hold the lower triangle only.

    Implementations are cheap to pickle (addresses, never data): workers receive them and read for themselves.
    """

    @property
    def grid(self) -> TileGrid:
        """The division into tiles."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Of the tiles."""
        ...

    def read(self, i: int, j: int) -> np.ndarray:
        """Tile `(i, j)` cut to `grid.tile(i, j).shape`, in `dtype`, C order, checked against its receipt.

        Raises:
            IndexError: outside the stored grid.
            IncompleteError: if the tile is not computed yet.
            CorruptionError: if what is stored disagrees with its receipt.
        """
        ...

    def leading(self, rows: int, cols: int | None = None) -> TileMatrix:
        """The leading block `[:rows, :cols]` of the same matrix."""
        ...


@dataclass(frozen=True)
class InMemoryTiles:
    """A dense array seen as tiles, for small problems and tests.

    Args:
        array: `(rows, cols)`; of a symmetric matrix both triangles are present and the lower is read.
        grid: of the same shape, or smaller (a leading block).
    """

    array: np.ndarray
    grid: TileGrid

    def __post_init__(self) -> None:
        if self.array.shape[0] < self.grid.rows or self.array.shape[1] < self.grid.cols:
            raise ValueError(f"array of shape {self.array.shape} is smaller than {self.grid}")

    @property
    def dtype(self) -> np.dtype:
        """Of the array."""
        return self.array.dtype

    def read(self, i: int, j: int) -> np.ndarray:
        """Tile `(i, j)`, see `TileMatrix.read`."""
        t = self.grid.tile(i, j)
        return np.ascontiguousarray(self.array[t.row_start : t.row_stop, t.col_start : t.col_stop])

    def leading(self, rows: int, cols: int | None = None) -> InMemoryTiles:
        """The leading block, without a copy."""
        return InMemoryTiles(self.array, self.grid.leading(rows, cols))
