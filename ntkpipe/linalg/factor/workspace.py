"""The state of a factor that a worker process keeps between tasks: tiles in memory, and threads that read ahead and write."""

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
from ntkpipe.limits import give_back_memory
from ntkpipe.linalg.factor.tiles import Address, FactorTiles
from ntkpipe.linalg.factor.triangle import Divisor
from ntkpipe.linalg.lanes import Lanes
from ntkpipe.storage.protocol import MissingObjectError
from ntkpipe.tiles.grid import Tile
from ntkpipe.tiles.matrix import TileMatrix

# Parts of a block of A: rows, columns, and their values in the stored precision.
Block = list[tuple[slice, slice, np.ndarray]]

# Number of tiles that are read ahead.
_LOOKAHEAD = 2
# Seconds that a process waits for the tile of a finished task, which may not be stored yet, before it computes the tile itself.
_PATIENCE = 20.0
# Seconds without a task after which a process frees its memory.
_IDLE_SECONDS = 20.0


@dataclass(frozen=True)
class Begun:
    """A tile of which some or all arithmetic was begun before its task.

    Args:
        address: address of the tile.
        tile: the array of the tile.
        block: the block of A.
        products: number of products that were begun.
        whole: whether adding the block of A and, off the diagonal, the division were begun as well.
        parts: strips that are being computed.
    """

    address: Address
    tile: np.ndarray
    block: Future[Block]
    products: int = 0
    whole: bool = False
    parts: Sequence[Future[None]] = ()


@dataclass(frozen=True)
class FactorJob:
    """The factorisation `A + ridge I = L L^T` by addresses, which every task receives.

    Args:
        tiles: tiles of the factor; their identity contains the ridge.
        matrix: `A`, symmetric.
        cache_bytes: memory for tiles that a process keeps between tasks.
    """

    tiles: FactorTiles
    matrix: TileMatrix = field(compare=False)  # the tiles' identity names it
    cache_bytes: int


class Workspace:
    """The tiles of one factor in a process. One task uses it at a time.

    All tasks of a column `j` need row `j` of the factor, so this row has priority in memory. Each other tile is needed once in every
    column, always in the same order. A cache that drops the least recently used tile would drop each tile shortly before it is needed.
    So a tile stays in memory until its row is finished, and a tile that does not fit is not kept.

    Args:
        job: addresses of the tiles and the matrix.
        make: computes a missing or damaged tile.
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
        self._begun: Begun | None = None
        self._divisor: tuple[int, Divisor] | None = None
        stored = sum(t.shape[0] * t.shape[1] for t in self.grid) * self.dtype.itemsize
        # All tiles fit into memory, so none is dropped or read ahead, and there is memory for a tile that is begun early.
        self.roomy = job.cache_bytes >= stored
        self._reader = ThreadPoolExecutor(max_workers=2, thread_name_prefix="factor-reader")
        # One thread reads the blocks of A in order, because neighbouring blocks are parts of the same stored tile.
        self._blocks = ThreadPoolExecutor(max_workers=1, thread_name_prefix="factor-blocks")
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="factor-writer")
        self._writing: Future[None] | None = None

    @contextlib.contextmanager
    def column(self, j: int) -> Iterator[None]:
        """Context manager for tasks of column `j`: row `j` has priority in memory, and rows above it are not needed again."""
        before = self._shared, self._first_live
        self._shared, self._first_live = j, j
        try:
            yield
        finally:
            self._shared, self._first_live = before

    def block(self, i: int, j: int) -> Future[Block]:
        """Block `(i, j)` of `A + ridge I`. For a diagonal block, only parts on and below the diagonal."""
        if self._expected is not None and self._expected[0] == (i, j):
            block, self._expected = self._expected[1], None
            return block
        return self._blocks.submit(self._block, i, j)

    def expect(self, address: Address) -> None:
        """Begin to read the block of the next task."""
        self._expected = address, self._blocks.submit(self._block, *address)

    def begin(self, begun: Begun) -> None:
        """Keep the tile that was begun for the next task."""
        self._begun = begun

    def begun(self, address: Address) -> Begun | None:
        """The begun tile of this address, or None. A lost tile that is recomputed meanwhile does not remove the begun tile of another."""
        begun = self._begun
        if begun is None or begun.address != address:
            return None
        self._begun = None
        return begun

    def abandon(self) -> None:
        """Cancel the tile that was begun for the next task."""
        self._begun = None
        self.lanes.drop()

    def divisor(self, j: int, triangle: np.ndarray) -> Divisor:
        """The divisor of the tiles of column `j`. It is kept if all tiles fit into memory."""
        if self._divisor is not None and self._divisor[0] == j:
            return self._divisor[1]
        made = Divisor.of(triangle, self.grid.rows)
        if self.roomy:
            self._divisor = j, made
        return made

    def stream(self, addresses: Sequence[Address]) -> Generator[np.ndarray, None, None]:
        """Tiles of the factor in order. Tiles that are not in memory are read ahead."""
        absent = iter([a for a in addresses if self.held(a) is None])
        pending: dict[Address, Future[np.ndarray]] = {}

        def ahead(count: int) -> None:
            for address in itertools.islice(absent, count):
                pending[address] = self._reader.submit(self.job.tiles.read, *address)

        ahead(_LOOKAHEAD)
        try:
            for address in addresses:
                future = pending.pop(address, None)
                tile = self.held(address)
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
        """Keep a tile in memory if there is room, or if it can replace a tile that is needed less."""
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

    def held(self, address: Address) -> np.ndarray | None:
        """The tile if it is in memory; None otherwise."""
        return self._rows.get(address[0], {}).get(address[1])

    def write(self, i: int, j: int, tile: np.ndarray, *, overwrite: bool = False) -> None:
        """Store a tile in the background. An error of storing the previous tile is raised here."""
        self.flush()
        self.written_bytes += tile.nbytes
        self._writing = self._writer.submit(self.job.tiles.write, i, j, tile, overwrite=overwrite)

    def flush(self) -> None:
        """Wait until the tile that is being stored is complete."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Finish storing and free the memory."""
        try:
            self.flush()
        finally:
            self.abandon()
            self._rows, self._used, self._source, self._expected, self._divisor = {}, 0, None, None, None
            self._reader.shutdown(wait=True, cancel_futures=True)
            self._blocks.shutdown(wait=True, cancel_futures=True)
            self._writer.shutdown(wait=True)
            self.lanes.close()
            give_back_memory()

    def _victim(self, newcomer: int) -> int | None:
        """A row of which a tile may be dropped for a tile of row `newcomer`; None if there is none."""
        for row, tiles in self._rows.items():
            if row < self._first_live and tiles:
                return row
        if newcomer == self._shared:
            return next((row for row in reversed(self._rows) if row != newcomer and self._rows[row]), None)
        return None

    def _load(self, address: Address, future: Future[np.ndarray] | None) -> np.ndarray:
        """The stored tile. A tile that is damaged, or does not appear in time, is recomputed."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                tile = self.job.tiles.read(*address) if future is None else future.result()
                self.read_bytes += tile.nbytes
                return tile
            except CorruptionError:
                break
            except MissingObjectError:
                self.flush()  # this process may be storing it
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
            # Only tiles on and below the diagonal are stored.
            for q in range(where.col_start // source.edge, min(p, (where.col_stop - 1) // source.edge) + 1):
                tile, t = self._stored(p, q), source.tile(p, q)
                top, bottom = max(where.row_start, t.row_start), min(where.row_stop, t.row_stop)
                left, right = max(where.col_start, t.col_start), min(where.col_stop, t.col_stop)
                part = tile[top - t.row_start : bottom - t.row_start, left - t.col_start : right - t.col_start]
                if part.size < tile.size:
                    part = np.array(part)  # a view would keep the whole tile in memory
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
        """Raise `NumericalError` if values are not finite in the factor's dtype."""
        with np.errstate(over="ignore", invalid="ignore"):
            total = part.sum()  # avoids an array of flags if all values are finite
            if np.isfinite(total) and part.dtype == self.dtype:
                return
            if np.isfinite(part.astype(self.dtype, copy=False)).all():
                return
        raise NumericalError(
            f"rows {where.row_start}-{where.row_stop - 1}, columns {where.col_start}-{where.col_stop - 1} of the matrix hold "
            f"values that are not finite in {self.dtype}: run `ntkpipe verify` to find the tile, or set solver.precision=float64"
        )

    def _stored(self, p: int, q: int) -> np.ndarray:
        """A tile of `A`. The last tile is kept if it contains several blocks."""
        kept = self._source
        if kept is not None and kept[0] == (p, q):
            return kept[1]
        self._source = kept = None  # freed before the next tile is read, so that memory for two tiles suffices
        tile = self.job.matrix.read(p, q)
        self.read_bytes += tile.nbytes
        if self.grid.edge < self.job.matrix.grid.edge:
            self._source = ((p, q), tile)
        return tile


class Keeper:
    """Keeps the workspace of one factor between the tasks of a process, and frees it after a while without use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current: Workspace | None = None
        self._timer: threading.Timer | None = None
        self._busy = 0

    @contextlib.contextmanager
    def workspace(self, job: FactorJob, make: Callable[[Workspace, int, int], np.ndarray]) -> Iterator[Workspace]:
        """Context manager: the workspace for `job`, which is that of the task before if it had the same job."""
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

    def abandon(self) -> None:
        """Cancel the tile that was begun for a task that will not come."""
        with self._lock:
            if self._current is not None and self._busy == 0:
                self._current.abandon()

    def release(self) -> None:
        """Free the workspace if it is not in use."""
        with self._lock:
            self._stop_timer()
            if self._current is not None and self._busy == 0:
                idle, self._current = self._current, None
                # If a tile could not be stored, the process that runs the factorisation notices this and recomputes it.
                with contextlib.suppress(NtkpipeError):
                    idle.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


_process = Keeper()
# Tasks are functions of a module, so their process holds the state between them.
workspace, settle, abandon, release = _process.workspace, _process.settle, _process.abandon, _process.release
