"""A task computes one tile of the factor by the left-looking algorithm.

    L_ij = (A_ij - sum_{k < j} L_ik L_jk^T) L_jj^-T,      L_jj = chol(A_jj - sum_{k < j} L_jk L_jk^T).

A left-looking task writes each tile once, and writes nothing else. A right-looking task would read and write an unfinished tile for each
product: three transfers for 2 b^3 flops, where this takes one or two reads. It takes one read of 8 b^2 bytes while the row `L_jk` that
a column shares is in memory: 4 bytes per b flops. A task depends only on finished tiles and has a fixed order of sums. So it gives the same
bits in any process, however often it runs.
"""

from __future__ import annotations

import functools
import time
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from ntkpipe.errors import NumericalError
from ntkpipe.linalg.factor.blas import factor_in_place, subtract_product
from ntkpipe.linalg.factor.tiles import Address
from ntkpipe.linalg.factor.triangle import Divisor
from ntkpipe.linalg.factor.workspace import Begun, Block, FactorJob, Workspace, workspace

# Number of columns of a diagonal tile that one thread factors at a time.
_PANEL = 512


class PivotError(NumericalError):
    """A pivot that is not positive: the matrix is not positive definite in this precision.

    Args:
        i: row and column of the diagonal tile `(i, i)`.
        pivot: 1-based row of the pivot in the whole matrix.
    """

    def __init__(self, i: int, pivot: int) -> None:
        super().__init__(i, pivot)
        self.i, self.pivot = i, pivot

    def __str__(self) -> str:
        return f"pivot {self.pivot} in tile ({self.i}, {self.i}) is not positive"


@dataclass(frozen=True)
class TileReceipt:
    """Record of a finished task.

    Args:
        i: row of tiles.
        j: column of tiles.
        seconds: wall time.
        read_bytes: bytes that were read of the matrix and of other tiles.
    """

    i: int
    j: int
    seconds: float
    read_bytes: int


def factor_tile(job: FactorJob, i: int, j: int, then: Address | None = None) -> TileReceipt:
    """Compute and store tile `(i, j)`. The tiles to the left of it, and those of row `j`, must be finished.

    Args:
        job: addresses of the tiles and the matrix.
        i: row of tiles.
        j: column of tiles.
        then: the next tile of this process, if it is known. Its block of A is read in the meantime.

    Raises:
        PivotError: if a diagonal tile is not positive definite.
        NumericalError: if the matrix holds values that are not finite.
    """
    began = time.monotonic()
    with workspace(job, make_tile) as space:
        before = space.read_bytes
        try:
            tile = make_tile(space, i, j, then)
        except BaseException:
            space.abandon()
            raise
        tile.flags.writeable = False  # a store in memory may keep the array itself
        space.keep((i, j), tile)
        space.write(i, j, tile)
        return TileReceipt(i, j, time.monotonic() - began, space.read_bytes - before)


def make_tile(space: Workspace, i: int, j: int, then: Address | None = None) -> np.ndarray:
    """Tile `(i, j)` from finished tiles; see `factor_tile`."""
    # A diagonal tile is computed while tasks of the column before it still run, and these still need its row.
    with space.column(j if i > j else max(0, j - 1)), space.lanes.open():
        begun = space.begun((i, j)) or Begun((i, j), *_fresh(space, i, j))
        if then is not None and space.roomy and space.lanes.ahead:
            space.begin(_begin(space, *then))
        elif then is not None:
            space.expect(then)
        for part in begun.parts:
            part.result()
        if not begun.whole:
            _complete(space, begun)
        return _factored(space, begun.tile, i, space.grid.tile(i, j).row_start) if i == j else begun.tile


def _fresh(space: Workspace, i: int, j: int) -> tuple[np.ndarray, Future[Block]]:
    return np.empty(space.grid.tile(i, j).shape, space.dtype), space.block(i, j)


def _begin(space: Workspace, i: int, j: int) -> Begun:
    """Begin the part of the next tile that needs only finished tiles, so that lanes without a strip of the present tile have work.

    Otherwise lanes would wait for the last strip at the end of every tile, and one lane would compute most of a diagonal tile.
    """
    tile, block = _fresh(space, i, j)
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for k in range(j):
        left, shared = space.held((i, k)), space.held((j, k))
        if left is None or shared is None:
            break
        pairs.append((left, shared))
    triangle = space.held((j, j)) if i > j else None
    whole = len(pairs) == j and (i == j or triangle is not None)
    divisor = space.divisor(j, triangle) if whole and triangle is not None else None
    if not pairs and not whole:
        return Begun((i, j), tile, block)
    work = functools.partial(_strip, tile, pairs, i == j, True, block if whole else None, divisor)
    return Begun((i, j), tile, block, len(pairs), whole, space.lanes.later(work, space.lanes.strips(len(tile))))


def _complete(space: Workspace, begun: Begun) -> None:
    """Compute the products that were not begun, add the block of A, and divide."""
    (i, j), tile = begun.address, begun.tile
    strips = space.lanes.strips(len(tile))
    ks = range(begun.products, j)
    tiles = space.stream([(row, k) for k in ks for row in sorted({i, j})] + [(j, j)] * (i > j))
    first, ready = begun.products == 0, []
    for k in ks:
        shared = next(tiles)
        ready.append((shared if i == j else next(tiles), shared))
        # All products whose tiles are in memory are computed together, so that strips do not wait between them.
        if k + 1 < j and (space.held((i, k + 1)) is None or space.held((j, k + 1)) is None):
            space.lanes.each(functools.partial(_strip, tile, ready, i == j, first, None, None), strips)
            first, ready = False, []
    divisor = None if i == j else space.divisor(j, next(tiles))
    tiles.close()
    space.lanes.each(functools.partial(_strip, tile, ready, i == j, first, begun.block, divisor), strips)


def _strip(
    tile: np.ndarray,
    pairs: list[tuple[np.ndarray, np.ndarray]],
    diagonal: bool,
    first: bool,
    block: Future[Block] | None,
    divisor: Divisor | None,
    rows: slice,
) -> None:
    """Compute the products of one strip, then add the block of A and divide, if these are given.

    Products of a diagonal tile are computed up to the diagonal. The block of A is added last, because it is read during the products.
    """
    if diagonal and first:
        tile[rows, rows.start :] = 0
    for k, (left, shared) in enumerate(pairs):
        new = first and k == 0
        if diagonal:
            _subtract_square(tile, left, rows, first=new)
        else:
            subtract_product(tile[rows], left[rows], shared, first=new)
    if block is not None:
        _add(tile, block.result(), first and not pairs, rows)
    if divisor is not None:
        divisor.divide(tile[rows])


def _subtract_square(tile: np.ndarray, left: np.ndarray, rows: slice, *, first: bool = False) -> None:
    """`C -= X X^T` for the rows of one strip, up to the diagonal."""
    strip = left[rows]
    if rows.start:
        subtract_product(tile[rows, : rows.start], strip, left[: rows.start], first=first)
    subtract_product(tile[rows, rows], strip, strip, first=first)


def _add(tile: np.ndarray, block: Block, only: bool, rows: slice) -> None:
    """Add the block of A to one strip. If `only`, the strip contains no products yet, and is set to the block."""
    for here, columns, part in block:
        low, high = max(rows.start, here.start), min(rows.stop, here.stop)
        if low < high:
            mine = part[low - here.start : high - here.start]
            with np.errstate(over="ignore"):  # overflow is checked where the block is read
                if only:
                    tile[low:high, columns] = mine
                else:
                    target = tile[low:high, columns]
                    np.add(target, mine, out=target, casting="same_kind")


def _factored(space: Workspace, tile: np.ndarray, i: int, start: int) -> np.ndarray:
    """Factor a diagonal tile in place, by columns of small blocks. Lanes share the rows below each block in strips.

    A single potrf of 2,000 rows in one thread took a tenth of the time of a column of tiles.
    """
    lanes, n = space.lanes, len(tile)
    for low in range(0, n, _PANEL):
        high = min(low + _PANEL, n)
        corner = tile[low:high, low:high]
        if info := factor_in_place(corner):
            raise PivotError(i, start + low + info)
        if high == n:
            break
        below, divisor = tile[high:, low:high], Divisor.of(corner, space.grid.rows)
        strips = lanes.strips(n - high)
        lanes.each(lambda rows, to=divisor, of=below: to.divide(of[rows]), strips)
        lanes.each(functools.partial(_subtract_square, tile[high:, high:], below), strips)
    return tile
