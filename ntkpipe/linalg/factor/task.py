"""One task: one tile of the factor, left-looking.

    L_ij = (A_ij - sum_{k < j} L_ik L_jk^T) L_jj^-T,      L_jj = chol(A_jj - sum_{k < j} L_jk L_jk^T).

Left-looking, because a tile is then written once and nothing else is: a right-looking task would read and write a tile that
is not finished for each product, three transfers for 2 b^3 flops where this takes one or two reads (one, of 8 b^2 bytes, while
the row `L_jk` that a column shares is held: 4 bytes per b flops). And a task is a function of finished tiles alone, in a fixed
order of sums: whoever runs it, and how often, it gives the same bits.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ntkpipe.errors import NumericalError
from ntkpipe.linalg.factor.blas import factor_in_place, subtract_product
from ntkpipe.linalg.factor.tiles import Address
from ntkpipe.linalg.factor.triangle import Divisor
from ntkpipe.linalg.factor.workspace import Block, FactorJob, Workspace, workspace

# Columns of a diagonal tile that are factored at a time, in one thread.
_PANEL = 512


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


def factor_tile(job: FactorJob, i: int, j: int, then: Address | None = None) -> TileReceipt:
    """Compute and store tile `(i, j)`; the tiles left of it, and those of row `j`, are finished.

    Args:
        job: addresses.
        i: row of tiles.
        j: column of tiles.
        then: the tile that this process makes next, if that is known: its block of A is read meanwhile.

    Raises:
        PivotError: if a diagonal tile is not positive definite.
        NumericalError: if the matrix holds values that are not finite.
    """
    began = time.monotonic()
    with workspace(job, make_tile) as space:
        before = space.read_bytes
        tile = make_tile(space, i, j, then)
        space.keep((i, j), tile)
        space.write(i, j, tile)
        return TileReceipt(i, j, time.monotonic() - began, space.read_bytes - before)


def make_tile(space: Workspace, i: int, j: int, then: Address | None = None) -> np.ndarray:
    """Tile `(i, j)` from finished ones; see `factor_tile`."""
    # A diagonal tile comes while the column before it is under way, whose row is still needed.
    with space.column(j if i > j else max(0, j - 1)), space.lanes.open():
        where = space.grid.tile(i, j)
        ahead = space.block(i, j)
        if then is not None:
            space.expect(then)
        # Where all is written no zeros are needed, whose pages are small ones.
        tile = (np.zeros if i == j else np.empty)(where.shape, space.dtype)
        tiles = space.stream([(row, k) for k in range(j) for row in sorted({i, j})] + [(j, j)] * (i > j))
        strips = space.lanes.strips(len(tile))
        for first, ready in _products(space, tiles, i, j):
            space.lanes.each(functools.partial(_subtract, tile, ready, i == j, first), strips)
        # The block of A is added last: it is read while the products are made.
        block = ahead.result()
        if i == j:
            space.lanes.each(functools.partial(_add, tile, block, j == 0), strips)
            return _factored(space, tile, i, where.row_start)
        divisor = Divisor.of(next(tiles), space.grid.rows)
        tiles.close()
        space.lanes.each(functools.partial(_finish, tile, block, j == 0, divisor), strips)
        return tile


def _products(
    space: Workspace, tiles: Iterator[np.ndarray], i: int, j: int
) -> Iterator[tuple[bool, list[tuple[np.ndarray, np.ndarray]]]]:
    """Pairs `(L_ik, L_jk)` for all k < j, as many at a time as are at hand: strips go through them without waiting."""
    first, ready = True, []
    for k in range(j):
        shared = next(tiles)
        ready.append((shared if i == j else next(tiles), shared))
        if k + 1 == j or not (space.holds((i, k + 1)) and space.holds((j, k + 1))):
            yield first, ready
            first, ready = False, []


def _subtract(
    tile: np.ndarray, pairs: list[tuple[np.ndarray, np.ndarray]], diagonal: bool, first: bool, rows: slice
) -> None:
    """The products of one strip; of a diagonal tile up to the diagonal."""
    for k, (left, shared) in enumerate(pairs):
        new = first and k == 0
        if diagonal:
            _subtract_square(tile, left, rows, first=new)
        else:
            subtract_product(tile[rows], left[rows], shared, first=new)


def _subtract_square(tile: np.ndarray, left: np.ndarray, rows: slice, *, first: bool = False) -> None:
    """`C -= X X^T`, the rows of one strip up to the diagonal."""
    strip = left[rows]
    if rows.start:
        subtract_product(tile[rows, : rows.start], strip, left[: rows.start], first=first)
    subtract_product(tile[rows, rows], strip, strip, first=first)


def _add(tile: np.ndarray, block: Block, only: bool, rows: slice) -> None:
    """The block of A to one strip, which has nothing yet if it is the `only` one."""
    for here, columns, part in block:
        low, high = max(rows.start, here.start), min(rows.stop, here.stop)
        if low < high:
            mine = part[low - here.start : high - here.start]
            with np.errstate(over="ignore"):  # found where the block is read
                if only:
                    tile[low:high, columns] = mine
                else:
                    target = tile[low:high, columns]
                    np.add(target, mine, out=target, casting="same_kind")


def _finish(tile: np.ndarray, block: Block, only: bool, divisor: Divisor, rows: slice) -> None:
    _add(tile, block, only, rows)
    divisor.divide(tile[rows])


def _factored(space: Workspace, tile: np.ndarray, i: int, start: int) -> np.ndarray:
    """The factor of a diagonal tile, in its place: column by column of small blocks, the rows below in strips.

    potrf of 2,000 rows in one thread took a tenth of the time of a column.
    """
    lanes, n = space.lanes, len(tile)
    for low in range(0, n, _PANEL):
        high = min(low + _PANEL, n)
        corner = tile[low:high, low:high]
        if info := factor_in_place(corner):
            raise PivotError(i, start + low + info)
        for row in range(len(corner) - 1):
            corner[row, row + 1 :] = 0
        if high == n:
            break
        below, divisor = tile[high:, low:high], Divisor.of(corner, space.grid.rows)
        strips = lanes.strips(n - high)
        lanes.each(lambda rows, to=divisor, of=below: to.divide(of[rows]), strips)
        lanes.each(functools.partial(_subtract_square, tile[high:, high:], below), strips)
        tile[low:high, high:] = 0
    return tile
