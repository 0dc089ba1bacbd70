"""The Gram stage: every missing tile of a plan through an executor."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from ntkpipe.errors import IncompleteError
from ntkpipe.gram.missing import Missing, list_missing
from ntkpipe.gram.plan import GramPlan, batch_size, batches
from ntkpipe.gram.progress import Progress
from ntkpipe.gram.task import GramJob, TileRecord, diagonal_task, release_rows, tile_task
from ntkpipe.tasks.executor import Executor
from ntkpipe.tasks.graph import LostWorkerError, Task
from ntkpipe.tiles.segment import SEGMENT
from ntkpipe.units import human_seconds

# Parts of a diagonal per task: they are cheap (linear in the images).
_DIAGONAL_BATCH = 16

# Progress is told at most so often; a status file is rewritten each time.
_REPORT_SECONDS = 1.0

# Failures that an error's text lists.
_LISTED = 5


@dataclass(frozen=True)
class GramReport:
    """Outcome of the stage.

    Args:
        computed: tiles computed by this run.
        reused: tiles found in the store, whoever computed them.
        seconds: wall time.
        worker_seconds: spent computing, summed over workers.
        pairs: kernel evaluations of the computed tiles.
        failed: tiles that could not be computed.
        retries: tasks that were started again because their worker was lost.
        copies: second copies of tasks that took long.
    """

    computed: int
    reused: int
    seconds: float
    worker_seconds: float = 0.0
    pairs: int = 0
    failed: tuple[TileRecord, ...] = field(default=())
    retries: int = 0
    copies: int = 0

    def describe(self) -> str:
        """One line for people."""
        rate = f", {self.pairs / self.seconds:.3g} pairs/s" if self.pairs and self.seconds > 0 else ""
        return f"{self.computed:,} tiles computed, {self.reused:,} reused, {human_seconds(self.seconds)}{rate}"


def compute_gram(
    executor: Executor,
    job: GramJob,
    plan: GramPlan,
    on_progress: Callable[[Progress], None] | None = None,
    missing: Missing | None = None,
) -> GramReport:
    """Compute the tiles and diagonals of `plan` that have no receipt in one of the job's stores.

    The diagonals alone, if the plan is that tiles are not stored.

    Whoever calls this should hold the stores' leases: not for correctness, but so that two runs do not do the same work.

    Args:
        executor: where tasks run.
        job: stores and images; their handles travel to the workers.
        plan: of the same grid as the stores.
        on_progress: called at the start, at most once a second, and at the end.
        missing: of this plan and job, listed a moment ago; None lists it now.

    Raises:
        ResourceError: at once, if the disk or a worker's memory is full.
        IncompleteError: at the end, naming the tiles that could not be computed; all others are stored then.
    """
    gram = job.outputs[0].gram
    identity = gram.identity
    for block in plan.blocks:
        if job.grid(block.block) != block.whole:
            raise ValueError(f"the plan is for {block.whole}, the store {gram.where} holds {job.grid(block.block)}")
    if (plan.kernel_dtype, plan.store_dtype) != (identity.dtype, identity.stored_dtype):
        raise ValueError(f"the plan and the store {gram.where} differ in dtype")
    run = _Stage(
        job, plan, list_missing(job, plan) if missing is None else missing, lambda: executor.workers, on_progress
    )
    # What killed its workers is tried once more, tile by tile: the others of its group are good.
    for tasks in (run.tasks(), run.singles()):
        results = executor.run(tasks)
        try:
            for result in results:
                run.progress.retries += max(0, result.attempts - 1)
                run.progress.copies += result.speculative
                if result.error is not None:
                    run.lost(result.key, result.error)
                else:
                    run.record(result.key, result.value)
        finally:
            results.close()  # on an error: cancels what is still running
            release_rows()
            run.settle()
    return run.finish()


class _Stage:
    """The state of one stage: what is left, how long a tile takes, what failed."""

    def __init__(
        self,
        job: GramJob,
        plan: GramPlan,
        missing: Missing,
        workers: Callable[[], int],
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._job = job
        self._plan = plan
        self._workers = workers
        self._on_progress = on_progress
        self._start = self._reported = time.monotonic()
        self._durations: deque[float] = deque(maxlen=32)
        self._failed: list[TileRecord] = []
        self._groups: dict[Hashable, Task] = {}  # in flight
        self._lost: list[Task] = []
        self._computed = self._pairs = 0
        self._worker_seconds = 0.0
        self._unpacked = 0
        self._packer = ThreadPoolExecutor(1, thread_name_prefix="receipt-packer")
        self._packing: Future[None] | None = None
        self._pack()
        self._missing = missing
        blocks = plan.blocks if plan.stored else ()
        tiles, pairs = sum(b.tiles for b in blocks), sum(b.pairs for b in blocks)
        self._left = sum(len(found) for found in missing.tiles.values())
        missing_pairs = sum(
            rows * cols
            for block, found in missing.tiles.items()
            for rows, cols in (job.grid(block).tile(int(i), int(j)).shape for i, j in found)
        )
        self._reused = tiles - self._left
        self.progress = Progress("gram", tiles, pairs, self._start)
        self.progress.reuse(self._reused, pairs - missing_pairs)
        self._report(force=True)

    def tasks(self) -> Iterator[Task]:
        """The missing tiles in groups, whose size follows the measured duration of a tile; then the diagonals."""
        left = self._left

        def sizes() -> Iterator[int]:
            while True:
                measured = bool(self._durations)
                mean = sum(self._durations) / len(self._durations) if measured else self._plan.seconds_per_tile
                yield batch_size(left, self._workers(), mean, measured=measured)

        for block, found in self._missing.tiles.items():
            for group in batches(((int(i), int(j)) for i, j in found), sizes()):
                left -= len(group)
                task = Task((block, *group[0], len(group)), tile_task, (self._job, block, group))
                self._groups[task.key] = task
                yield task
        for block, rows in self._missing.diagonals.items():
            for start in range(0, len(rows), _DIAGONAL_BATCH):
                members = tuple(int(row) for row in rows[start : start + _DIAGONAL_BATCH])
                key = (f"diagonal/{block}", members[0], 0, len(members))
                self._groups[key] = Task(key, diagonal_task, (self._job, block, members))
                yield self._groups[key]

    def singles(self) -> Iterator[Task]:
        """What the lost groups held, one by one."""
        lost, self._lost = self._lost, []
        for task in lost:
            job, block, group = task.args
            for member in group:
                i, j = member if isinstance(member, tuple) else (member, 0)
                single = Task((task.key[0], i, j, 1), task.function, (job, block, (member,)))  # type: ignore[index]
                self._groups[single.key] = single
                yield single

    def record(self, key: Hashable, records: list[TileRecord]) -> None:
        """Take in what a task returned."""
        del self._groups[key]
        units = pairs = 0
        for tile in records:
            if tile.outcome == "failed":
                self._failed.append(tile)
                continue
            if tile.block.startswith("diagonal/"):
                continue
            units += 1
            pairs += tile.pairs
            if tile.outcome == "found":
                self._reused += 1
            else:
                self._computed += 1
                self._pairs += tile.pairs
                self._worker_seconds += tile.seconds
                self._durations.append(tile.seconds)
        self._unpacked += len(records)
        if self._unpacked >= SEGMENT and (self._packing is None or self._packing.done()):
            # Behind the back of the loop: a thousand requests to a bucket take seconds, in which no task would be sent.
            self.settle()
            self._packing = self._packer.submit(self._pack)
            self._unpacked = 0
        self.progress.add(units, pairs, time.monotonic())
        self._report()

    def _pack(self) -> None:
        """Receipts into segments: a later run then lists and reads a thousandth of them."""
        for output in self._job.outputs:
            output.gram.compact()

    def settle(self) -> None:
        """Wait for receipts that are being packed; what went wrong is raised here."""
        packing, self._packing = self._packing, None
        if packing is not None:
            packing.result()

    def lost(self, key: Hashable, error: BaseException) -> None:
        """Take in a task that raised: out of resources or a programming error stops the stage; lost workers do not."""
        if not isinstance(error, LostWorkerError):
            raise error
        task = self._groups.pop(key)
        label, i, j, count = key  # type: ignore[misc]
        if count > 1:
            self._lost.append(task)
            return
        block = task.args[1]
        tile = self._job.grid(block).tile(i, j)
        images = f"rows {tile.row_start} to {tile.row_stop - 1} of {block}"
        if not label.startswith("diagonal/"):
            images += f", columns {tile.col_start} to {tile.col_stop - 1} of train"
        self._failed.append(TileRecord(label, i, j, 0, "failed", error=f"it holds points {images}; {error}"))

    def finish(self) -> GramReport:
        """The report; `IncompleteError` if tiles failed."""
        self._packer.shutdown()
        self._report(force=True)
        if self._failed:
            lines = [f"  tile ({t.i}, {t.j}) of {t.block}: {t.error}" for t in self._failed[:_LISTED]]
            if len(self._failed) > _LISTED:
                lines.append(f"  and {len(self._failed) - _LISTED} more")
            raise IncompleteError(
                f"{len(self._failed)} of {self._plan.tiles} tiles could not be computed; all others are stored. Mend "
                "the cause and start the same command again:\n" + "\n".join(lines)
            )
        seconds = time.monotonic() - self._start
        return GramReport(
            self._computed,
            self._reused,
            seconds,
            self._worker_seconds,
            self._pairs,
            retries=self.progress.retries,
            copies=self.progress.copies,
        )

    def _report(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if self._on_progress is not None and (force or now - self._reported >= _REPORT_SECONDS):
            self._reported = now
            self._on_progress(self.progress)
