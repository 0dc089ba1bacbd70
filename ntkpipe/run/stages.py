"""One function per stage, each resumable, and `run` for all of them. Executors come from outside, when first needed."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ntkpipe
from ntkpipe.config import RunConfig
from ntkpipe.data.source_records import same_source
from ntkpipe.errors import CorruptionError, DataError, IncompleteError
from ntkpipe.events.event import Emit, Event, Kind, Paced, Tell, silent, teller, to_all
from ntkpipe.gram.progress import Progress as GramProgress
from ntkpipe.gram.stage import compute_gram
from ntkpipe.planning.text import describe_tiles
from ntkpipe.predictions.metrics import compute_metrics, write_metrics
from ntkpipe.predictions.read import read_predictions, verify_predictions
from ntkpipe.predictions.write import write_predictions
from ntkpipe.report.terminal import chosen_lines, summary
from ntkpipe.run import predicting as prediction
from ntkpipe.run import solving
from ntkpipe.run.context import RunContext
from ntkpipe.run.listeners import ProgressFile, RunLog
from ntkpipe.run.prepare import damaged_images, forget_images, prepare
from ntkpipe.run.report_inputs import write_report
from ntkpipe.run.run_dir import STAGES, RunDir
from ntkpipe.run.watching import Watch, watching
from ntkpipe.solvers.solution import Solution, write_arrays
from ntkpipe.storage.protocol import Lease
from ntkpipe.tasks.executor import Executor
from ntkpipe.tiles import audit
from ntkpipe.units import human_bytes, human_seconds

# Damaged tiles met in the middle of a solve are recomputed and the solve goes on, so often.
_REPAIRS = 3


@dataclass
class RunAtWork:
    """A run at work.

    Args:
        run: its folder.
        executor: makes the executor when a stage first needs one: bad input is refused before anything starts.
        listener: receives the events of the run; see `ntkpipe.events`.
        siblings: runs of other networks on the same images, whose missing tiles come out of the same evaluations.
    """

    run: RunDir
    executor: Callable[[], Executor]
    listener: Emit
    siblings: tuple[RunConfig, ...] = ()
    _inputs: RunContext | None = None
    _solved: dict[str, Solution] | None = None
    _emit: Emit = silent

    def __post_init__(self) -> None:
        self._emit = self._listeners()

    def _listeners(self, watch: Watch | None = None) -> Emit:
        """All who listen. Lines for people come last: what they tell has been kept by then."""
        if watch is None:
            return to_all(RunLog(self.run), Paced(ProgressFile(self.run)), self.listener)
        return to_all(
            RunLog(self.run), Paced(to_all(ProgressFile(self.run, watch.count_traffic), watch)), self.listener
        )

    @contextlib.contextmanager
    def at_work(self) -> Iterator[RunAtWork]:
        """Hold the run, and let whoever follows it know how it goes.

        Raises:
            HeldError: if another process works on it.
            StoreError: if its store is not there any more.
            ConfigError: for an experiment tracker that is not installed.
        """
        started: list[Executor] = []
        make = self.executor

        def executor() -> Executor:
            started[:] = [make()]
            return started[0]

        def publish(stage: str, numbers: Mapping[str, float]) -> None:
            if started:
                started[0].publish(stage, numbers)

        self.run.require_store()  # before anybody is told there how the run goes
        self.executor = executor
        try:
            with self.run.held(), watching(self.run, publish) as watch:
                self._emit = self._listeners(watch)
                yield self
        finally:
            self.executor, self._emit = make, self._listeners()

    @contextlib.contextmanager
    def _stage(self, name: str, kind: Kind = Kind.PROGRESS) -> Iterator[Tell]:
        """Say that a stage begins, and that it stops if it does; gives what its progress is told to."""
        self._emit(Event(Kind.STAGE_BEGUN, name))
        try:
            yield teller(self._emit, name, kind)
        except BaseException as error:
            self._emit(Event(Kind.STAGE_STOPPED, name, str(error), {"error": type(error).__name__}))
            raise

    def _note(self, stage: str, text: str) -> None:
        """A line for people alone."""
        self._emit(Event(Kind.NOTE, stage, text))

    def inputs(self) -> RunContext:
        """The prepared images, the plan and the Gram store; made by the first call."""
        if self._inputs is None:
            began = time.monotonic()
            receipt, path = self.run.receipt("data"), self.run.config.data.path
            self.run.require_store()
            # A run whose raw data is gone goes on with the images that it has prepared, and so does one whose data is the same,
            # wherever it lies now.
            source = receipt["source"] if receipt is not None and _has_prepared(self.run.config, receipt) else None
            begun = None if receipt is None else receipt.get("tiles_stored")
            found = prepare(
                self.run.config, lambda line: self._note("", line), source=source, siblings=self.siblings, begun=begun
            )
            facts = {"fingerprint": found.images.fingerprint, "labels": found.images.labels_key}
            if receipt is not None and any(receipt.get(name) != value for name, value in facts.items()):
                raise DataError(
                    f"{path or self.run.config.data.kind} is not what {self.run.path} was started with: its images or "
                    "labels have changed. Give the run on the new data a run_dir of its own."
                )
            self.run.begin()
            for text in found.warnings:
                self.warn(text)
            if receipt is None or receipt.get("source") != found.source:
                self._finish(
                    "data",
                    time.monotonic() - began,
                    images=found.images.prefix,
                    source=found.source,
                    path=None if path is None else str(Path(path).resolve()),
                    **facts,
                    n_train=found.n_train,
                    n_test=found.n_test,
                    image_shape=list(found.images.shape("train")[1:]),
                    tiles_stored=found.plan.stored,
                )
            self._inputs = found
        return self._inputs

    def warn(self, text: str) -> None:
        """Tell and log a warning."""
        self._emit(Event(Kind.WARNING, "", text))

    def gram(self) -> None:
        """Compute the missing tiles; the diagonals alone, if tiles are not stored."""
        inputs = self.inputs()
        plan, store, job = inputs.plan, inputs.gram, inputs.job
        if job is None:
            if self.run.receipt("gram") is None:
                inputs.kernels.source.check_scale(inputs.n_train, inputs.config.solver, self.executor())
                self._finish("gram", 0.0, store=store.where, tiles=0, computed=0, reused=0, given=True)
            self._note("gram", f"given: {store.where}")
            return
        # A receipt torn by a power cut, or one whose tile is gone, must not count: presence and sizes are checked here,
        # checksums whenever a tile is read.
        self._discard(deep=False)
        tiles = plan.tiles if plan.stored else 0
        what = (
            f"all {tiles:,} tiles are stored" if plan.stored else f"{plan.tiles:,} tiles, computed when they are read"
        )
        if not any(
            any(True for _ in missing)
            for block in plan.blocks
            for missing in (
                job.missing(block.block, block.used) if plan.stored else (),
                job.missing_diagonal(block.block, block.used.rows),
            )
        ):
            if self.run.receipt("gram") is None:
                stores = [held.where for held in inputs.stores]
                self._finish(
                    "gram", 0.0, store=store.where, stores=stores, tiles=tiles, computed=0, reused=tiles, pairs=0
                )
            self._note("gram", f"{what}: {store.where}")
            return
        for line in filter(None, describe_tiles(plan).splitlines()):
            self._note("plan", line)
        executor = self.executor()
        try:
            inputs.kernels.source.check_scale(inputs.n_train, inputs.config.solver, executor)
        except (CorruptionError, IncompleteError):
            if not self._mend_images():
                raise
            inputs = self.inputs()
            job = inputs.job or job
            inputs.kernels.source.check_scale(inputs.n_train, inputs.config.solver, executor)
        mine: list[Lease] = []

        def tell(p: GramProgress) -> None:
            for lease in mine:
                lease.check()  # another run has taken over: it does the work now
            if not plan.stored:
                return  # of diagonals there is nothing to count
            nonlocal again
            if p.retries > again:
                self._emit(Event(Kind.RETRY, "gram", facts={"tasks": p.retries - again}))
                again = p.retries
            progress(p.line().removeprefix("gram: "), force=p.done >= p.total, **p.record())

        began, again = time.monotonic(), 0
        with self._stage("gram", Kind.TILES_DONE) as progress, contextlib.ExitStack() as leases:
            for held in inputs.stores:
                mine.append(leases.enter_context(held.lease(f"ntkpipe gram of {self.run.path}")))
            try:
                report = compute_gram(executor, job, plan, tell)
            except IncompleteError:
                if not self._mend_images():
                    raise
                report = compute_gram(executor, self.inputs().job or job, plan, tell)
        seconds = time.monotonic() - began
        earlier = self.run.receipt("gram") or {}
        self._finish(
            "gram",
            seconds,
            store=store.where,
            stores=[held.where for held in inputs.stores],
            tiles=tiles,
            computed=report.computed,
            reused=report.reused,
            pairs=report.pairs,
            worker_seconds=round(report.worker_seconds, 3),
            computed_in_all=report.computed + int(earlier.get("computed_in_all", 0)),
            retries=report.retries,
            second_copies=report.copies,
        )
        if not plan.stored:
            self._note("gram", f"{what}; diagonals stored in {human_seconds(seconds)}: {store.where}")
            return
        rate = report.pairs / seconds if seconds > 0 else 0.0
        self._note(
            "gram",
            f"{report.computed:,} tiles computed, {report.reused:,} reused, {human_seconds(seconds)}, "
            f"{rate:.3g} pairs/s, {human_bytes(plan.disk_bytes)} in {', '.join(held.where for held in inputs.stores)}",
        )

    def solve(self) -> None:
        """Solve every kernel, one after the other."""
        inputs = self.inputs()
        self._require_tiles()
        began = time.monotonic()
        if (receipt := self.run.receipt("solve")) is not None:
            damage = self.run.damaged_files("solve")
            if not damage:
                self._note("solve", f"finished {receipt['finished']}")
                return
            for text in damage:
                self.warn(f"{text}; solving again")
            self.run.forget("solve")
        with self._stage("solve") as tell:
            self._solved = {}
            for name in inputs.config.predict.kernels:
                solved = self._repairing(lambda name=name: solving.solve(inputs, name, self.executor(), tell))
                solving.save(solved, self.run)
                self._solved[name] = solved
            facts = {name: solved.facts for name, solved in self._solved.items()}
            files = [solving.saved_file(name, self.run) for name in facts]
            self._finish("solve", time.monotonic() - began, files=files, kernels=facts)

    def predict(self) -> None:
        """Means, bounds and variances of every kernel, time and ridge; metrics."""
        inputs = self.inputs()
        target = self.run.path / "predictions.zarr"
        if (receipt := self.run.receipt("predict")) is not None:
            damage = verify_predictions(target) + self.run.damaged_files("predict")
            if not damage:
                self._note("predict", f"finished {receipt['finished']}: {target}")
                return
            for text in damage:
                self.warn(f"{text}; predicting again")
            self.run.forget("predict", "report")
        self.run.require("solve")
        self._require_tiles()
        began = time.monotonic()
        names = inputs.config.predict.kernels
        solved = [self._solution(name) for name in names]
        times = prediction.resolve_times(inputs, solved)
        with self._stage("predict") as progress:
            parts, warnings = [], list(inputs.warnings)
            for one in solved:
                progress(f"{one.name}: {len(times)} times, {len(one.problem.ridges)} ridges, {inputs.n_test:,} images")
                part = self._repairing(
                    lambda one=one: prediction.predict_kernel(self.inputs(), one, times, self.executor(), progress)
                )
                parts.append(part)
                for text in part.warnings:
                    self.warn(text)
                    warnings.append(text)
            selection = self._select(solved, times, progress)
            predictions = prediction.collect(inputs, solved, parts, warnings, selection)
            self._solved = None  # a basis of a gigabyte is not needed any more
            write_predictions(predictions, target, overwrite=True)
            metrics = compute_metrics(predictions)
            write_metrics(metrics, self.run.path / "metrics.json")
            residuals = self.run.path / "leave_one_out.npz"
            self._finish(
                "predict",
                time.monotonic() - began,
                files=[self.run.path / "metrics.json", *([residuals] if residuals.exists() else [])],
                fingerprint=predictions.fingerprint(),
                max_error_bound=max((e["max_error_bound"] or 0.0) for e in metrics["entries"]),
            )
        for line in [*summary(metrics), *chosen_lines(metrics)]:
            self._note("predict", line)

    def _select(self, solved: Sequence[Solution], times: tuple[float, ...], tell: Tell) -> dict[str, Any] | None:
        """The time and ridge that training images choose, of every kernel; None where none are to be chosen."""
        method = self.run.config.predict.selection
        if method == "none":
            return None

        found = {
            one.name: self._repairing(
                lambda one=one: prediction.select(self.inputs(), one, times, self.executor(), tell)
            )
            for one in solved
        }
        residuals = {name: chosen.residuals for name, chosen in found.items() if chosen.residuals is not None}
        if residuals:
            index = self.inputs().images.labels().train_index[: self.inputs().n_train]
            write_arrays(self.run.path / "leave_one_out.npz", {"train_index": index, **residuals})
        return {"method": method, "kernels": {name: chosen.record for name, chosen in found.items()}}

    def report(self) -> None:
        """Figures and the HTML page.

        Raises:
            ReportError: if they could not be made; whatever went before stays finished.
        """
        began = time.monotonic()
        self.run.require("predict")
        if self.run.damaged_files("solve"):
            self.solve()
        with self._stage("report"):
            page = write_report(self.run, self.inputs())
            files = [file for file in page.parent.rglob("*") if file.is_file()]
            self._finish("report", time.monotonic() - began, files=files, page=str(page))
        self._note("report", str(page))

    def all(self) -> bool:
        """Every stage that is not finished.

        Returns:
            False if there was nothing to do.

        Raises:
            ReportError: if all but the report is finished, and that could not be made.
        """
        if is_finished(self.run):
            self._note(
                "",
                f"nothing to do: {self.run.path} finished {(self.run.receipt('report') or {})['finished']} with this very "
                "configuration",
            )
            return False
        self.inputs()
        self._emit(Event(Kind.RUN_BEGUN, facts={"pid": os.getpid(), "ntkpipe": ntkpipe.__version__}))
        self.gram()
        self.solve()
        self.predict()
        self.report()
        self._emit(Event(Kind.RUN_DONE))
        return True

    def _finish(self, stage: str, seconds: float, **facts: Any) -> None:
        receipt = self.run.finish(stage, seconds, **facts)
        self._emit(Event(Kind.STAGE_DONE, stage, facts=receipt, elapsed=seconds))

    def _solution(self, name: str) -> Solution:
        """What was solved, in this process or an earlier one; what is left of it no more is solved again."""
        if self._solved is None or name not in self._solved:
            try:
                return solving.restore(self.inputs(), name, self.run)
            except IncompleteError as error:
                self.warn(str(error))
            self.run.forget("solve")
            self.solve()
            assert self._solved is not None
        return self._solved[name]

    def _require_tiles(self) -> None:
        inputs = self.inputs()
        for block in inputs.plan.blocks:
            for gram in (one for one in inputs.stores if one in inputs.parts):
                first = next(gram.missing(block.block, block.used), None) if inputs.plan.stored else None
                rows = gram.missing_diagonal(block.block, block.used.rows)
                if first is None and not rows:
                    continue
                what = f"tile ({first.i}, {first.j})" if first is not None else f"part {rows[0]} of the diagonal"
                raise IncompleteError(
                    f"{what} of {block.block} is not computed yet: ntkpipe gram run_dir={self.run.path}"
                )

    def _repairing(self, work: Callable[[], Any]) -> Any:
        """Do `work`; tiles that turn out damaged are found, named and recomputed, and the work taken up again."""
        for _ in range(_REPAIRS):
            try:
                return work()
            except CorruptionError as error:
                self.warn(f"{error} Looking for what is damaged, to make it again.")
                self._mend_images()
                self._discard(deep=True)
                self.gram()
        return work()

    def _mend_images(self) -> bool:
        """Write damaged prepared images again, from the raw data; False if there are none."""
        inputs = self.inputs()
        damaged = damaged_images(inputs)
        for text in damaged:
            self.warn(f"{text}; preparing the images again")
        if damaged:
            forget_images(inputs)
            self._inputs = None
            self.inputs()
        return bool(damaged)

    def _discard(self, *, deep: bool) -> None:
        """Find damaged tiles (see `audit.verify`) and drop them, by name, so that they are computed again."""
        for store in self.inputs().stores:
            for label, i, j in audit.repair(store, audit.verify(store, deep=deep)):
                self.warn(f"tile ({i}, {j}) of {label} in {store.where} is damaged or gone and is computed again")


def is_finished(run: RunDir) -> bool:
    """Whether every stage of the run has its receipt, its output is there, and it answers for the data as it is now."""
    receipts = {stage: run.receipt(stage) for stage in STAGES}
    if None in receipts.values() or any(run.damaged_files(stage) for stage in STAGES):
        return False
    same = _has_prepared(run.config, receipts["data"] or {})
    return same and not verify_predictions(run.path / "predictions.zarr")


def _has_prepared(config: RunConfig, receipt: Mapping[str, Any]) -> bool:
    """Whether the images of a receipt are those of the data as it is now, or of data that is gone."""
    path, source = config.data.path, receipt.get("source")
    gone = path is not None and not Path(path).expanduser().exists()
    # The same files in another place are the same.
    return source is not None and (gone or same_source(config, source, place=receipt.get("path")))


def load_predictions(run: RunDir) -> Any:
    """The predictions of a finished run.

    Raises:
        IncompleteError: if there are none yet.
    """
    run.require("predict")
    return read_predictions(run.path / "predictions.zarr")
