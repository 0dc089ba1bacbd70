"""The division of a matrix into square tiles. It uses only integers, without arrays or I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ntkpipe.errors import ConfigError


@dataclass(frozen=True, slots=True, order=True)
class Tile:
    """Address of one tile and the half-open row and column ranges that it covers."""

    i: int
    j: int
    row_start: int
    row_stop: int
    col_start: int
    col_stop: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns inside the matrix. Tiles at its lower and right edges may be smaller than others."""
        return self.row_stop - self.row_start, self.col_stop - self.col_start

    @property
    def is_diagonal(self) -> bool:
        """Whether the tile lies on the diagonal of a symmetric grid. On other grids the value has no meaning."""
        return self.i == self.j


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Square tiles of `edge` rows over a `rows` x `cols` matrix.

    A symmetric grid holds only the lower triangle, which is every tile `(i, j)` with `i >= j`, row by row. The tiles of
    a leading block `[:m, :m]` are therefore a prefix of the iteration, and a subset of a training set shares the tiles
    of the whole.

    Raises:
        ConfigError: if a size is not positive or a symmetric grid is not square.
    """

    rows: int
    cols: int
    edge: int
    symmetric: bool = False

    def __post_init__(self) -> None:
        if min(self.rows, self.cols, self.edge) < 1:
            raise ConfigError(f"a tile grid needs positive sizes, got {self.rows} x {self.cols} with edge {self.edge}")
        if self.symmetric and self.rows != self.cols:
            raise ConfigError(f"a symmetric grid must be square, got {self.rows} x {self.cols}")

    @property
    def tile_rows(self) -> int:
        """Number of rows of tiles."""
        return -(-self.rows // self.edge)

    @property
    def tile_cols(self) -> int:
        """Number of columns of tiles."""
        return -(-self.cols // self.edge)

    def __len__(self) -> int:
        if self.symmetric:
            return self.tile_rows * (self.tile_rows + 1) // 2
        return self.tile_rows * self.tile_cols

    def __iter__(self) -> Iterator[Tile]:
        for i in range(self.tile_rows):
            for j in range(i + 1 if self.symmetric else self.tile_cols):
                yield self.tile(i, j)

    def tile(self, i: int, j: int) -> Tile:
        """Return the tile at row `i` and column `j` of tiles.

        Raises:
            IndexError: if the tile is outside the grid, or above the diagonal of a symmetric grid.
        """
        if not (0 <= i < self.tile_rows and 0 <= j < self.tile_cols) or (self.symmetric and j > i):
            raise IndexError(f"no tile ({i}, {j}) in {self}")
        e = self.edge
        return Tile(i, j, i * e, min((i + 1) * e, self.rows), j * e, min((j + 1) * e, self.cols))

    def leading(self, rows: int, cols: int | None = None) -> TileGrid:
        """Return the grid of the leading block `[:rows, :cols]`, with the same addresses and tiles cut at its edges.

        Raises:
            ConfigError: if the block is larger than the matrix.
        """
        cols = (rows if self.symmetric else self.cols) if cols is None else cols
        if rows > self.rows or cols > self.cols:
            raise ConfigError(f"leading block {rows} x {cols} exceeds {self.rows} x {self.cols}")
        return TileGrid(rows, cols, self.edge, self.symmetric)
