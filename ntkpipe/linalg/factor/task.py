"""One task: one tile of the factor, left-looking.

    L_ij = (A_ij - sum_{k < j} L_ik L_jk^T) L_jj^-T,      L_jj = chol(A_jj - sum_{k < j} L_jk L_jk^T).

Left-looking, because a tile is then written once and nothing else is: a right-looking task would read and write a tile that
is not finished for each product, three transfers for 2 b^3 flops where this takes one or two reads (one, of 8 b^2 bytes, while
the row `L_jk` that a column shares is held: 4 bytes per b flops). And a task is a function of finished tiles alone, in a fixed
order of sums: whoever runs it, and how often, it gives the same bits.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from ntkpipe.errors import NumericalError
from ntkpipe.linalg.factor.blas import divide_by_transpose, factor_in_place, subtract_product
from ntkpipe.linalg.factor.workspace import FactorJob, Workspace, workspace


class PivotError(NumericalError):
    """A pivot that is not positive: the matrix is not positive definite in this precision.

    Args:
        i: tile `(i, i)`.
        pivot: its 1-based row in the whole matrix.
    """

    def __init__(self, i: int, pivot: int) -> None:
        super().__init__(i, pivot)
        self.i, self.pivot = i, pivot

    def __str__(self) -> str:
        return f"pivot {self.pivot} in tile ({self.i}, {self.i}) is not positive"


@dataclass(frozen=True)
class TileReceipt:
    """What a task did.

    Args:
        i: row of tiles.
        j: column of tiles.
        seconds: that it took.
        read_bytes: of the matrix and of other tiles.
    """

    i: int
    j: int
    seconds: float
    read_bytes: int


def factor_tile(job: FactorJob, i: int, j: int) -> TileReceipt:
    """Compute and store tile `(i, j)`; the tiles left of it, and those of row `j`, are finished.

    Raises:
        PivotError: if a diagonal tile is not positive definite.
        NumericalError: if the matrix holds values that are not finite.
    """
    began = time.monotonic()
    with workspace(job, make_tile) as space:
        before = space.read_bytes
        tile = make_tile(space, i, j)
        space.keep((i, j), tile)
        space.write(i, j, tile)
        return TileReceipt(i, j, time.monotonic() - began, space.read_bytes - before)


def make_tile(space: Workspace, i: int, j: int) -> np.ndarray:
    """Tile `(i, j)` from finished ones; see `factor_tile`."""
    # A diagonal tile comes while the column before it is under way, whose row is still needed.
    with space.column(j if i > j else max(0, j - 1)):
        ahead = space.block(i, j)
        # The block of A is added last: it is read while the products are made.
        tile = np.zeros(space.grid.tile(i, j).shape, space.dtype) if j else ahead.result()
        if i == j:
            for left in space.stream([(j, k) for k in range(j)]):
                subtract_product(tile, left, left)
            if j:
                tile += ahead.result()
            return _factored(tile, i, space.grid.tile(i, i).row_start)
        tiles = space.stream([(row, k) for k in range(j) for row in (j, i)] + [(j, j)])
        for _ in range(j):
            shared = next(tiles)
            subtract_product(tile, next(tiles), shared)
        if j:
            tile += ahead.result()
        del ahead
        divide_by_transpose(tile, next(tiles))
        tiles.close()
        return tile


def _factored(tile: np.ndarray, i: int, start: int) -> np.ndarray:
    info = factor_in_place(tile)
    if info:
        raise PivotError(i, start + info)
    for row in range(len(tile) - 1):
        tile[row, row + 1 :] = 0
    return tile
