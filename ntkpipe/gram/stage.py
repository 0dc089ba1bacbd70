"""The Gram stage: computes every missing tile of a plan with an executor."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ntkpipe.errors import IncompleteError
from ntkpipe.gram.missing import Missing, list_missing
from ntkpipe.gram.plan import GramPlan, batch_size, batches
from ntkpipe.gram.progress import Progress
from ntkpipe.gram.task import GramJob, TileRecord, diagonal_task, release_rows, tile_task
from ntkpipe.tasks.executor import Executor
from ntkpipe.tasks.graph import LostWorkerError, Task
from ntkpipe.tiles.segment import SEGMENT
from ntkpipe.units import human_seconds

# Parts of a diagonal per task. They are cheap: linear in the number of images.
_DIAGONAL_BATCH = 16

# Shortest interval between two reports of progress, because each rewrites a status file.
_REPORT_SECONDS = 1.0

# Largest number of failures that an error message lists.
_LISTED = 5


@dataclass(frozen=True)
class GramReport:
    """Outcome of the stage.

    Args:
        computed: tiles computed by this run.
        reused: tiles that were in the store already.
        seconds: wall time.
        worker_seconds: computing time, summed over workers.
        pairs: kernel evaluations of the computed tiles.
        failed: tiles that could not be computed.
        retries: number of tasks that were started again because their worker was lost.
        copies: number of second copies of slow tasks.
    """

    computed: int
    reused: int
    seconds: float
    worker_seconds: float = 0.0
    pairs: int = 0
    failed: tuple[TileRecord, ...] = field(default=())
    retries: int = 0
    copies: int = 0

    def record(self) -> dict[str, Any]:
        """Plain values for the receipt of the stage."""
        return {
            "computed": self.computed,
            "reused": self.reused,
            "pairs": self.pairs,
            "worker_seconds": round(self.worker_seconds, 3),
            "retries": self.retries,
            "second_copies": self.copies,
        }

    def describe(self) -> str:
        """One line of text."""
        rate = f", {self.pairs / self.seconds:.3g} pairs/s" if self.pairs and self.seconds > 0 else ""
        return f"{self.computed:,} tiles computed, {self.reused:,} reused, {human_seconds(self.seconds)}{rate}"


def compute_gram(
    executor: Executor,
    job: GramJob,
    plan: GramPlan,
    on_progress: Callable[[Progress], None] | None = None,
    missing: Missing | None = None,
) -> GramReport:
    """Compute the tiles and diagonals of `plan` that lack a receipt in one of the job's stores.

    If the plan does not store tiles, only diagonals are computed. The caller should hold the leases of the stores, so
    that two runs do not compute the same tiles; the result is correct without them.

    Args:
        executor: runs the tasks.
        job: the stores and the images; their addresses are sent to the workers.
        plan: with the same grid as the stores.
        on_progress: called at the start, at most once a second, and at the end.
        missing: the missing tiles of this plan and job, if they were just listed; None lists them.

    Raises:
        ResourceError: at once, if the disk or a worker's memory is full.
        IncompleteError: at the end, with the tiles that could not be computed. All other tiles are stored.
        ValueError: if the plan and the stores differ in grid or dtype.
    """
    gram = job.outputs[0].gram
    identity = gram.identity
    for block in plan.blocks:
        if job.grid(block.block) != block.whole:
            raise ValueError(f"the plan is for {block.whole}, but the store {gram.where} holds {job.grid(block.block)}")
    if (plan.kernel_dtype, plan.store_dtype) != (identity.dtype, identity.stored_dtype):
        raise ValueError(f"the plan and the store {gram.where} differ in dtype")
    run = _Stage(
        job, plan, list_missing(job, plan) if missing is None else missing, lambda: executor.workers, on_progress
    )
    # A group whose workers were lost is repeated tile by tile, because most of its tiles may be harmless.
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
            results.close()  # on an error: cancels running tasks
            release_rows()
            run.settle()
    return run.finish()


class _Stage:
    """The state of a running stage: remaining tiles, seconds per tile, failures."""

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
        """Tasks for the missing tiles, then for the diagonals. The size of a task follows the measured time of a tile."""
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
        """One task for each tile of the groups whose workers were lost."""
        lost, self._lost = self._lost, []
        for task in lost:
            job, block, group = task.args
            for member in group:
                i, j = member if isinstance(member, tuple) else (member, 0)
                single = Task((task.key[0], i, j, 1), task.function, (job, block, (member,)))  # type: ignore[index]
                self._groups[single.key] = single
                yield single

    def record(self, key: Hashable, records: list[TileRecord]) -> None:
        """Record the result of a task."""
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
            # This runs in another thread, because a thousand requests to a bucket take seconds, and this loop sends tasks.
            self.settle()
            self._packing = self._packer.submit(self._pack)
            self._unpacked = 0
        self.progress.add(units, pairs, time.monotonic())
        self._report()

    def _pack(self) -> None:
        """Pack receipts into segments, so that a later run lists and reads a thousand times fewer objects."""
        for output in self._job.outputs:
            output.gram.compact()

    def settle(self) -> None:
        """Wait until receipts are packed; raises the errors of packing."""
        packing, self._packing = self._packing, None
        if packing is not None:
            packing.result()

    def lost(self, key: Hashable, error: BaseException) -> None:
        """Record a task whose worker was lost; raise any other error, which stops the stage."""
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
        self._failed.append(TileRecord(label, i, j, 0, "failed", error=f"it holds points {images}: {error}"))

    def finish(self) -> GramReport:
        """The report of the stage; raises `IncompleteError` if tiles failed."""
        self._packer.shutdown()
        self._report(force=True)
        if self._failed:
            lines = [f"  tile ({t.i}, {t.j}) of {t.block}: {t.error}" for t in self._failed[:_LISTED]]
            if len(self._failed) > _LISTED:
                lines.append(f"  and {len(self._failed) - _LISTED} more")
            raise IncompleteError(
                f"{len(self._failed)} of {self._plan.tiles} tiles could not be computed; all others are stored. Fix "
                "the cause and repeat the same command:\n" + "\n".join(lines)
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
