"""The plan of a factorisation: the edge of its tiles, memory, bytes and arithmetic. It uses only integers and reads nothing.

There are N = n / b rows of tiles of edge b. Task (i, j) subtracts j products of 2 b^3 flops and divides by a triangle. Columns
depend on each other, and so do the tasks (j, j), (j + 1, j), (j + 1, j + 1). W workers run out of work in the last columns, where
fewer than 1.5 W tasks remain beside a chain of 3 N products each. This loses about 2.25 W N products of the N^3 / 3 / W that
each worker computes, a share of 6.75 (W / N)^2. With N >= 8 W it is about a tenth:

    b <= n / (8 W).

A single worker has no such loss. It takes b <= max(n / 8, 2048), so that an interrupted run has finished tiles. Larger tiles are
faster (n = 12,000, two threads, medians of three: 89 GF/s with 2,000 rows, 77 with 1,000).

The memory of a worker holds six tiles (the sum, two in use, two read ahead, one being written), two blocks of A in the stored precision
(for this task and for the next one), and the two stored tiles that contain them. It should also hold the row of L that all tasks of a
column share:

    6 b^2 + 2 b^2 (stored) + n b <= share.

A product of fewer than 256 rows takes less than a millisecond, so that overheads become noticeable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ntkpipe.errors import ResourceError

_LARGEST_EDGE, _SMALLEST_EDGE = 4096, 256
_ROWS_PER_WORKER = 8
_LONE_EDGE = 2048
# Numbers of tiles of the factor, of blocks of the matrix, and of stored tiles that a task holds in addition to cached tiles.
_WORKING_TILES, _BLOCKS, _SOURCE_TILES = 6, 2, 2


@dataclass(frozen=True)
class FactorPlan:
    """A factorisation before it runs.

    Args:
        n: number of rows of the matrix.
        edge: number of rows of a tile of the factor.
        dtype: dtype of the factor.
        workers: number of processes that compute.
        source_edge: number of rows of a stored tile.
        source_dtype: dtype of the stored tiles.
        memory_bytes: memory for the data of all workers together.
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
        """Number N of rows of tiles."""
        return -(-self.n // self.edge)

    @property
    def tasks(self) -> int:
        """Number of tiles of the factor, which is the number of tasks."""
        return self.tile_rows * (self.tile_rows + 1) // 2

    @property
    def flops(self) -> float:
        """Arithmetic of the factorisation, `n^3 / 3` flops."""
        return self.n**3 / 3

    @property
    def stored_bytes(self) -> int:
        """Bytes of the stored factor."""
        low = [k * self.edge for k in range(self.tile_rows)]
        return sum((self.n - a) * (min(a + self.edge, self.n) - a) for a in low) * self._item

    @property
    def working_bytes(self) -> int:
        """Memory of one worker without its cache."""
        return working_bytes(self.n, self.edge, self.dtype, self.source_edge, self.source_dtype)

    @property
    def cache_bytes(self) -> int:
        """Memory for tiles that one worker keeps between tasks."""
        return max(0, share(self.memory_bytes, self.workers) - self.working_bytes)

    @property
    def peak_bytes(self) -> int:
        """Largest memory of the data of all workers together during the factorisation, without the processes themselves."""
        return self.workers * (min(self.cache_bytes, self.stored_bytes) + self.working_bytes)

    @property
    def inverse_bytes(self) -> int:
        """Of the data of all workers together, while they make the diagonal of the inverse: cached tiles, and a batch of columns.

        A batch needs no tiles of its own but the two that are in use.
        """
        room = share(self.memory_bytes, self.workers) - self.working_bytes
        _, batch = batch_of_inverse(self.n, self.edge, self.dtype, room)
        cached = min(max(0, room - batch), self.stored_bytes)
        return self.workers * (cached + batch + 2 * min(self.edge, self.n) ** 2 * self._item)

    @property
    def read_bytes(self) -> float:
        """Bytes that all workers read of the stored matrix and of the factor. With several workers it is an upper estimate.

        Every worker reads the shared row of a column once. It does not read the cached share of other rows. If the whole factor fits
        into the cache, every worker reads each tile once that it did not compute.
        """
        rows, cached = self.tile_rows, self.cache_bytes / (min(self.edge, self.n) ** 2 * self._item)
        tiles = 0.0
        for j in range(1, rows):
            below = rows - 1 - j
            held = min(j, cached)
            # Cached share of the tiles that this column and the next one need. The next diagonal tile is computed within this column.
            hit = min(1.0, (cached - held) / max((j + 1) * below, 1))
            streamed = j * below + (j + 1 if below else 0)
            tiles += streamed * (1 - hit) + (j - held) * below + j * (self.workers - 1) + held * (1 - hit)
        return tiles * min(self.edge, self.n) ** 2 * self._item + self._source_bytes()

    def _source_bytes(self) -> float:
        """Bytes that are read of the stored matrix: all tiles that a block overlaps, except the tile that the task before has used."""
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
    """Memory of one task, without cached tiles."""
    tile = _WORKING_TILES * np.dtype(dtype).itemsize + _BLOCKS * np.dtype(source_dtype).itemsize
    return tile * min(edge, n) ** 2 + _SOURCE_TILES * min(source_edge, n) ** 2 * np.dtype(source_dtype).itemsize


def batch_of_inverse(n: int, edge: int, dtype: str, room: int) -> tuple[int, int]:
    """Columns of `L^-1` that a task makes together for the diagonal of the inverse, and their bytes.

    Args:
        n: rows of the matrix.
        edge: rows of a tile of the factor.
        dtype: of the factor.
        room: bytes for them and for cached tiles.
    """
    each = np.dtype(dtype).itemsize * n
    columns = max(1, min(edge, n, room // each))
    return columns, columns * each


def share(memory_bytes: int, workers: int) -> int:
    """The memory of one process. Several workers share it with the driver, which solves while they may still hold their tiles."""
    return memory_bytes // (workers + (workers > 1))


def choose_edge(n: int, *, dtype: str, workers: int, source_edge: int, source_dtype: str, memory_bytes: int) -> int:
    """Number of rows of a tile of the factor; see the module. A tile covers several stored tiles, or an equal part of one.

    Args:
        n: number of rows of the matrix.
        dtype: dtype of the factor.
        workers: number of processes that compute.
        source_edge: number of rows of a stored tile.
        source_dtype: dtype of the stored tiles.
        memory_bytes: memory for the data of all workers together.

    Raises:
        ResourceError: if the memory is too small even for small tiles.
    """
    source_edge = min(source_edge, n)
    left = share(memory_bytes, workers) - working_bytes(n, 0, dtype, source_edge, source_dtype)
    items = max(0, left) / np.dtype(dtype).itemsize
    tiles = working_bytes(1, 1, dtype, 0, source_dtype) / np.dtype(dtype).itemsize
    # The positive root of tiles b^2 + n b = items.
    fits = (math.sqrt(n * n + 4 * tiles * items) - n) / (2 * tiles)
    least = min(n, _SMALLEST_EDGE)
    if fits < least:
        # There is no memory for a cached row, so it is read again for every tile.
        fits = math.sqrt(items / tiles)
        if fits < min(n, 64):
            need = (workers + (workers > 1)) * working_bytes(n, min(n, 64), dtype, source_edge, source_dtype)
            raise ResourceError(
                f"a Cholesky factorisation of {n:,} rows with {workers} workers needs {need / 2**20:,.0f} MiB for its "
                f"tiles, but {memory_bytes / 2**20:,.0f} MiB are free: set fewer cluster.workers, a smaller "
                "grid.edge, or more cluster.memory_gib"
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
