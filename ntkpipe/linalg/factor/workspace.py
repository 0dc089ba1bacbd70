"""What a worker process keeps of a factor between tasks: tiles in memory, a thread that reads ahead, one that writes."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from ntkpipe.errors import CorruptionError, NtkpipeError, NumericalError
from ntkpipe.linalg.factor.tiles import Address, FactorTiles
from ntkpipe.linalg.lanes import Lanes
from ntkpipe.storage.protocol import MissingObjectError
from ntkpipe.tiles.grid import Tile
from ntkpipe.tiles.matrix import TileMatrix

# Rows and columns of a block of A, and their values as stored.
Block = list[tuple[slice, slice, np.ndarray]]

# Tiles read ahead of the arithmetic.
_LOOKAHEAD = 2
# A finished task's tile may still be on its way to the store: so long others wait for it before they make it themselves.
_PATIENCE = 20.0
# A process that has had nothing to do for so long gives its memory back.
_IDLE_SECONDS = 20.0


@dataclass(frozen=True)
class FactorJob:
    """`A + ridge I = L L^T`, by addresses: what every task receives.

    Args:
        tiles: of the factor; their identity has the ridge.
        matrix: `A`, symmetric.
        cache_bytes: for tiles that a process keeps between tasks.
    """

    tiles: FactorTiles
    matrix: TileMatrix = field(compare=False)  # named by the tiles' identity
    cache_bytes: int


class Workspace:
    """The tiles of one factor as a process sees them; used by one task at a time.

    What is kept: tasks of a column all need row `j` of the factor, which is kept first. The other tiles are needed once a
    column, in turn: keeping the least recently used ones would lose each just before it is needed again. Hence what is in
    memory stays there until its row is finished, and what does not fit is not kept.

    Args:
        job: addresses.
        make: computes a tile that is missing or damaged.
    """

    def __init__(self, job: FactorJob, make: Callable[[Workspace, int, int], np.ndarray]) -> None:
        self.job = job
        self.dtype = np.dtype(job.tiles.identity.dtype)
        self.grid = job.tiles.identity.grid
        self.read_bytes = self.written_bytes = 0
        self.lanes = Lanes()
        self._make = make
        self._rows: dict[int, dict[int, np.ndarray]] = {}
        self._used = 0
        self._shared: int | None = None
        self._first_live = 0
        self._source: tuple[Address, np.ndarray] | None = None
        self._expected: tuple[Address, Future[Block]] | None = None
        self._reader = ThreadPoolExecutor(max_workers=2, thread_name_prefix="factor-reader")
        # Blocks of A one after the other: neighbours are cut from the same stored tile.
        self._blocks = ThreadPoolExecutor(max_workers=1, thread_name_prefix="factor-blocks")
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="factor-writer")
        self._writing: Future[None] | None = None

    @contextlib.contextmanager
    def column(self, j: int) -> Iterator[None]:
        """While tiles of column `j` are made: row `j` is kept before others, rows above it are not needed again."""
        before = self._shared, self._first_live
        self._shared, self._first_live = j, j
        try:
            yield
        finally:
            self._shared, self._first_live = before

    def block(self, i: int, j: int) -> Future[Block]:
        """Block `(i, j)` of `A + ridge I`; of a diagonal one, parts that reach below the diagonal."""
        if self._expected is not None and self._expected[0] == (i, j):
            block, self._expected = self._expected[1], None
            return block
        return self._blocks.submit(self._block, i, j)

    def expect(self, address: Address) -> None:
        """Read the block of the task that comes next."""
        self._expected = address, self._blocks.submit(self._block, *address)

    def stream(self, addresses: Sequence[Address]) -> Generator[np.ndarray, None, None]:
        """Tiles of the factor in order; those that are not at hand are read ahead."""
        absent = iter([a for a in addresses if self._cached(a) is None])
        pending: dict[Address, Future[np.ndarray]] = {}

        def ahead(count: int) -> None:
            for address in itertools.islice(absent, count):
                pending[address] = self._reader.submit(self.job.tiles.read, *address)

        ahead(_LOOKAHEAD)
        try:
            for address in addresses:
                future = pending.pop(address, None)
                tile = self._cached(address)
                if future is not None:
                    ahead(1)
                if tile is None:
                    tile = self._load(address, future)
                    self.keep(address, tile)
                yield tile
                del tile
        finally:
            for future in pending.values():
                future.cancel()

    def keep(self, address: Address, tile: np.ndarray) -> None:
        """Hold a tile in memory if there is room, or something less needed."""
        i, j = address
        row = self._rows.setdefault(i, {})
        if j in row:
            return
        while self._used + tile.nbytes > self.job.cache_bytes:
            victim = self._victim(i)
            if victim is None:
                if not row:
                    del self._rows[i]
                return
            self._used -= self._rows[victim].popitem()[1].nbytes
            if not self._rows[victim] and victim != i:
                del self._rows[victim]
        row[j] = tile
        self._used += tile.nbytes

    def holds(self, address: Address) -> bool:
        """True if the tile is in memory."""
        return self._cached(address) is not None

    def write(self, i: int, j: int, tile: np.ndarray, *, overwrite: bool = False) -> None:
        """Store a tile in the background; what went wrong with the one before is raised here."""
        self.flush()
        self.written_bytes += tile.nbytes
        self._writing = self._writer.submit(self.job.tiles.write, i, j, tile, overwrite=overwrite)

    def flush(self) -> None:
        """Wait for the tile that is being stored."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Store what is on its way and give the memory back."""
        try:
            self.flush()
        finally:
            self._rows, self._used, self._source, self._expected = {}, 0, None, None
            self._reader.shutdown(wait=True, cancel_futures=True)
            self._blocks.shutdown(wait=True, cancel_futures=True)
            self._writer.shutdown(wait=True)
            self.lanes.close()

    def _cached(self, address: Address) -> np.ndarray | None:
        return self._rows.get(address[0], {}).get(address[1])

    def _victim(self, newcomer: int) -> int | None:
        """A row that may lose a tile to one of row `newcomer`."""
        for row, tiles in self._rows.items():
            if row < self._first_live and tiles:
                return row
        if newcomer == self._shared:
            return next((row for row in reversed(self._rows) if row != newcomer and self._rows[row]), None)
        return None

    def _load(self, address: Address, future: Future[np.ndarray] | None) -> np.ndarray:
        """The tile as stored; one that is damaged, or does not come, is made again."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                tile = self.job.tiles.read(*address) if future is None else future.result()
                self.read_bytes += tile.nbytes
                return tile
            except CorruptionError:
                break
            except MissingObjectError:
                self.flush()  # it may be our own
                if self.job.tiles.store.exists(self.job.tiles.key(*address)):
                    future = None
                    continue
                if time.monotonic() > deadline:
                    break
                future = None
                time.sleep(0.02)
        tile = self._make(self, *address)
        self.job.tiles.write(*address, tile, overwrite=True)
        return tile

    def _block(self, i: int, j: int) -> Block:
        where, source = self.grid.tile(i, j), self.job.matrix.grid
        parts: Block = []
        for p in range(where.row_start // source.edge, (where.row_stop - 1) // source.edge + 1):
            # Only what lies below the diagonal is used, and stored.
            for q in range(where.col_start // source.edge, min(p, (where.col_stop - 1) // source.edge) + 1):
                tile, t = self._stored(p, q), source.tile(p, q)
                top, bottom = max(where.row_start, t.row_start), min(where.row_stop, t.row_stop)
                left, right = max(where.col_start, t.col_start), min(where.col_stop, t.col_stop)
                part = tile[top - t.row_start : bottom - t.row_start, left - t.col_start : right - t.col_start]
                if part.size < tile.size:
                    part = np.array(part)  # or the whole tile would stay in memory for it
                if i == j and p == q:
                    part, on = np.tril(part), np.arange(bottom - top)
                    part[on, on] = part.diagonal().astype(np.float64) + self.job.tiles.identity.ridge
                self._check(part, where)
                parts.append(
                    (
                        slice(top - where.row_start, bottom - where.row_start),
                        slice(left - where.col_start, right - where.col_start),
                        part,
                    )
                )
        return parts

    def _check(self, part: np.ndarray, where: Tile) -> None:
        """Values must be finite in the factor's dtype."""
        with np.errstate(over="ignore", invalid="ignore"):
            total = part.sum()  # no array of flags is made where all is well
            if np.isfinite(total) and part.dtype == self.dtype:
                return
            if np.isfinite(part.astype(self.dtype, copy=False)).all():
                return
        raise NumericalError(
            f"rows {where.row_start}-{where.row_stop - 1}, columns {where.col_start}-{where.col_stop - 1} of the matrix hold "
            f"values that are not finite in {self.dtype}: run `ntkpipe verify` to find the tile, or set solver.precision=float64"
        )

    def _stored(self, p: int, q: int) -> np.ndarray:
        """A tile of `A`; the last one is kept, as several blocks may be cut from it."""
        kept = self._source
        if kept is not None and kept[0] == (p, q):
            return kept[1]
        self._source = kept = None  # before the next is read: memory for two
        tile = self.job.matrix.read(p, q)
        self.read_bytes += tile.nbytes
        if self.grid.edge < self.job.matrix.grid.edge:
            self._source = ((p, q), tile)
        return tile


class Keeper:
    """A process's workspace between tasks: that of one factor, given back when nothing has asked for it for a while."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current: Workspace | None = None
        self._timer: threading.Timer | None = None
        self._busy = 0

    @contextlib.contextmanager
    def workspace(self, job: FactorJob, make: Callable[[Workspace, int, int], np.ndarray]) -> Iterator[Workspace]:
        """The workspace for `job`: the one of the task before, if that had the same job."""
        with self._lock:
            self._stop_timer()
            if self._current is None or self._current.job != job:
                if self._current is not None:
                    self._current.close()
                self._current = Workspace(job, make)
            self._busy += 1
            mine = self._current
        try:
            yield mine
        finally:
            with self._lock:
                self._busy -= 1
                self._timer = threading.Timer(_IDLE_SECONDS, self.release)
                self._timer.daemon = True
                self._timer.start()

    def settle(self) -> None:
        """Wait until the last tile is stored."""
        with self._lock:
            if self._current is not None:
                self._current.flush()

    def release(self) -> None:
        """Give the workspace back, if nobody uses it."""
        with self._lock:
            self._stop_timer()
            if self._current is not None and self._busy == 0:
                idle, self._current = self._current, None
                # A tile that could not be stored is missed, and made again, by whoever runs the factorisation.
                with contextlib.suppress(NtkpipeError):
                    idle.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


_process = Keeper()
# Tasks are functions of a module: what is kept between them belongs to their process.
workspace, settle, release = _process.workspace, _process.settle, _process.release
