"""Products with tiles that are computed on the fly and not stored. Tasks take addresses and return sums of vectors."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ntkpipe.gram.function import Evaluates
from ntkpipe.gram.task import ImageSource, evaluate_tile
from ntkpipe.tiles.chunk import finite_error
from ntkpipe.tiles.grid import TileGrid
from ntkpipe.tiles.layout import Block, Kernel

# Most tiles per task. More tiles reuse a prepared row block longer, but more work is lost with a worker.
_TILES = 8
# Fewest tasks per worker, if there are enough tiles.
_TASKS = 16


class Vectors(Protocol):
    """The address of the vectors of a product. It is hashable and cheap to pickle, because it contains no numbers."""

    def read(self) -> list[np.ndarray]:
        """Read the vectors: one (n, k) float64 array per kernel, in the order of `ProductJob.kernels`."""
        ...


@dataclass(frozen=True)
class ProductJob:
    """The arguments that all tasks of one pass share.

    Args:
        images: the source of the images.
        evaluation: of one network or function, in the precision of the products.
        block: `train` or `test`.
        grid: tiles of the points in use.
        kernels: to multiply, each with its own vectors; one evaluation computes all of them.
        vectors: for each kernel.
        pairs_per_step: see `Evaluation.tile`.
    """

    images: ImageSource
    evaluation: Evaluates
    block: Block
    grid: TileGrid
    kernels: tuple[Kernel, ...]
    vectors: Vectors
    pairs_per_step: int | None = None

    def parts(self, workers: int) -> Iterator[tuple[int, int, int]]:
        """The tiles of each task, as `(i, first, last)`: tiles `(i, first)` to `(i, last - 1)`."""
        grid = self.grid
        tiles = sum(1 for _ in grid)
        step = int(np.clip(tiles // (_TASKS * max(workers, 1)), 1, _TILES))
        for i in range(grid.tile_rows):
            columns = i + 1 if grid.symmetric else grid.tile_cols
            for first in range(0, columns, step):
                yield i, first, min(first + step, columns)


@dataclass(frozen=True)
class Partial:
    """The contribution of one task to the products, per kernel.

    Args:
        row: first row of its tiles.
        own: (rows, k) each: the products for these rows.
        column: first column of its tiles.
        mirrored: (columns, k) each: the products of the transposed tiles; empty for a block that is not symmetric.
    """

    row: int
    own: tuple[np.ndarray, ...]
    column: int
    mirrored: tuple[np.ndarray, ...]

    def add_to(self, sums: list[np.ndarray]) -> None:
        """Add it to the products (rows of the block, k), in place."""
        for total, part in zip(sums, self.own, strict=True):
            total[self.row : self.row + len(part)] += part
        for total, part in zip(sums, self.mirrored, strict=False):
            total[self.column : self.column + len(part)] += part


def product_task(job: ProductJob, i: int, first: int, last: int) -> Partial:
    """Tiles `(i, first)` to `(i, last - 1)` times the vectors.

    For a symmetric block the result includes the transposes of the tiles off the diagonal.

    Raises:
        DataError: naming the images, if values are not finite.
        CorruptionError: if prepared images or the vectors are damaged.
    """
    grid, vectors = job.grid, _vectors(job.vectors)
    start, stop = grid.tile(i, first).col_start, grid.tile(i, last - 1).col_stop
    rows = grid.tile(i, first)
    own = [np.zeros((rows.shape[0], x.shape[1])) for x in vectors]
    mirrored = [np.zeros((stop - start, x.shape[1])) for x in vectors] if grid.symmetric else []
    for j in range(first, last):
        tile = grid.tile(i, j)
        (made,) = evaluate_tile(job.images, job.evaluation, job.block, grid, i, j, "float64", job.pairs_per_step)
        for k, (kernel, x) in enumerate(zip(job.kernels, vectors, strict=True)):
            entries = made[kernel]
            if error := finite_error(entries, kernel, job.block, i, j, grid.edge):
                raise error
            own[k] += entries @ x[tile.col_start : tile.col_stop]
            if grid.symmetric and i != j:
                mirrored[k][tile.col_start - start : tile.col_stop - start] += (
                    entries.T @ x[tile.row_start : tile.row_stop]
                )
    return Partial(rows.row_start, tuple(own), start, tuple(mirrored))


# One entry suffices, because a pass ends before the next begins.
@functools.lru_cache(maxsize=1)
def _vectors(vectors: Vectors) -> list[np.ndarray]:
    return vectors.read()
