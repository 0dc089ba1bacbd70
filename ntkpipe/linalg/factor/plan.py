"""What a factorisation takes: edge of its tiles, memory, bytes and arithmetic. Integers only; nothing is read.

With N = n / b rows of tiles of edge b, task (i, j) subtracts j products of 2 b^3 flops and divides by a triangle. Columns
follow one another, and so do the tasks (j, j), (j + 1, j), (j + 1, j + 1): W workers run out of work in the last columns, where
fewer than 1.5 W tasks are left beside a chain of 3 N products each. That loses about 2.25 W N products of the N^3 / 3 / W that
a worker has in all, a share of 6.75 (W / N)^2. With N >= 8 W it is a tenth:

    b <= n / (8 W).

One worker has no such end; it takes b <= max(n / 8, 2048), so that a run that is killed has finished tiles: larger ones are
faster (n = 12,000, two threads, medians of three: 89 GF/s with 2,000 rows, 77 with 1,000).

A worker's memory holds six tiles (the sum, two in use, two read ahead, one being written), two blocks of A as stored (this
task's and the next one's), two stored tiles that they are cut from, and should hold the row of L that all tasks of a column share:

    6 b^2 + 2 b^2 (stored) + n b <= share.

Below 256 rows a product takes a millisecond, and what is around it shows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ntkpipe.errors import ResourceError

_LARGEST_EDGE, _SMALLEST_EDGE = 4096, 256
_ROWS_PER_WORKER = 8
_LONE_EDGE = 2048
# Tiles of the factor, blocks of the matrix, and stored tiles, that a task holds besides what is cached.
_WORKING_TILES, _BLOCKS, _SOURCE_TILES = 6, 2, 2


@dataclass(frozen=True)
class FactorPlan:
    """A factorisation before it runs.

    Args:
        n: rows of the matrix.
        edge: rows of a tile of the factor.
        dtype: of the factor.
        workers: processes that compute.
        source_edge: rows of a stored tile.
        source_dtype: of the stored tiles.
        memory_bytes: for the data of all workers together.
    """

    n: int
    edge: int
    dtype: str
    workers: int
    source_edge: int
    source_dtype: str
    memory_bytes: int

    @property
    def tile_rows(self) -> int:
        """Rows of tiles, N."""
        return -(-self.n // self.edge)

    @property
    def tasks(self) -> int:
        """Tiles of the factor."""
        return self.tile_rows * (self.tile_rows + 1) // 2

    @property
    def flops(self) -> float:
        """`n^3 / 3`."""
        return self.n**3 / 3

    @property
    def stored_bytes(self) -> int:
        """Of the factor: what is written."""
        low = [k * self.edge for k in range(self.tile_rows)]
        return sum((self.n - a) * (min(a + self.edge, self.n) - a) for a in low) * self._item

    @property
    def working_bytes(self) -> int:
        """Of one worker, besides its cache."""
        return working_bytes(self.n, self.edge, self.dtype, self.source_edge, self.source_dtype)

    @property
    def cache_bytes(self) -> int:
        """For tiles that one worker keeps between tasks."""
        return max(0, share(self.memory_bytes, self.workers) - self.working_bytes)

    @property
    def peak_bytes(self) -> int:
        """Of the data of all workers together, while they factor: processes themselves come on top."""
        return self.workers * (min(self.cache_bytes, self.stored_bytes) + self.working_bytes)

    @property
    def read_bytes(self) -> float:
        """Read of the stored matrix and of the factor by all workers, an estimate from above for several.

        A column's shared row is read once by every worker; of the others' rows the cached share is not read. What all fits
        is read once by every worker that did not make it.
        """
        rows, cached = self.tile_rows, self.cache_bytes / (min(self.edge, self.n) ** 2 * self._item)
        tiles = 0.0
        for j in range(1, rows):
            below = rows - 1 - j
            held = min(j, cached)
            # Of the tiles that this and the next column need; the next one's diagonal is made within this one.
            hit = min(1.0, (cached - held) / max((j + 1) * below, 1))
            streamed = j * below + (j + 1 if below else 0)
            tiles += streamed * (1 - hit) + (j - held) * below + j * (self.workers - 1) + held * (1 - hit)
        return tiles * min(self.edge, self.n) ** 2 * self._item + self._source_bytes()

    def _source_bytes(self) -> float:
        """Read of the stored matrix: every tile that a block overlaps, but for one that the task before has used."""
        e, edge, n = self.source_edge, self.edge, self.n
        tiles, last = 0.0, (-1, -1)
        for j in range(self.tile_rows):
            for i in range(j, self.tile_rows):
                for p in range(i * edge // e, (min((i + 1) * edge, n) - 1) // e + 1):
                    for q in range(j * edge // e, min(p, (min((j + 1) * edge, n) - 1) // e) + 1):
                        if (p, q) != last or self.workers > 1:
                            tiles += (min((p + 1) * e, n) - p * e) * (min((q + 1) * e, n) - q * e)
                        last = (p, q) if edge < e else last
        return tiles * np.dtype(self.source_dtype).itemsize

    @property
    def _item(self) -> int:
        return np.dtype(self.dtype).itemsize


def working_bytes(n: int, edge: int, dtype: str, source_edge: int, source_dtype: str) -> int:
    """Memory of one task, besides what is cached."""
    tile = _WORKING_TILES * np.dtype(dtype).itemsize + _BLOCKS * np.dtype(source_dtype).itemsize
    return tile * min(edge, n) ** 2 + _SOURCE_TILES * min(source_edge, n) ** 2 * np.dtype(source_dtype).itemsize


def share(memory_bytes: int, workers: int) -> int:
    """Of one process: the workers, and the driver, which solves while they may still hold their tiles."""
    return memory_bytes // (workers + (workers > 1))


def choose_edge(n: int, *, dtype: str, workers: int, source_edge: int, source_dtype: str, memory_bytes: int) -> int:
    """Rows of a tile of the factor, see above: several stored tiles, or a part of one.

    Args:
        n: rows of the matrix.
        dtype: of the factor.
        workers: processes that compute.
        source_edge: rows of a stored tile.
        source_dtype: of the stored tiles.
        memory_bytes: for the data of all workers together.

    Raises:
        ResourceError: if not even small tiles fit.
    """
    source_edge = min(source_edge, n)
    left = share(memory_bytes, workers) - working_bytes(n, 0, dtype, source_edge, source_dtype)
    items = max(0, left) / np.dtype(dtype).itemsize
    tiles = working_bytes(1, 1, dtype, 0, source_dtype) / np.dtype(dtype).itemsize
    # The root of tiles b^2 + n b = items.
    fits = (math.sqrt(n * n + 4 * tiles * items) - n) / (2 * tiles)
    least = min(n, _SMALLEST_EDGE)
    if fits < least:
        # Then without a cached row: it is read again for every tile.
        fits = math.sqrt(items / tiles)
        if fits < min(n, 64):
            need = (workers + (workers > 1)) * working_bytes(n, min(n, 64), dtype, source_edge, source_dtype)
            raise ResourceError(
                f"a Cholesky factorisation of {n:,} rows with {workers} workers needs {need / 2**20:,.0f} MiB for its tiles and "
                f"{memory_bytes / 2**20:,.0f} MiB are free for them: fewer cluster.workers, a smaller grid.edge, or more "
                "cluster.memory_gib"
            )
        least = min(least, int(fits))
    parallel = n // (_ROWS_PER_WORKER * workers)
    if workers == 1:
        parallel = min(n, max(parallel, _LONE_EDGE))
    edge = max(least, min(int(fits), parallel, _LARGEST_EDGE))
    if edge >= source_edge:
        return edge // source_edge * source_edge
    parts = -(-source_edge // edge)
    return -(-source_edge // parts)
