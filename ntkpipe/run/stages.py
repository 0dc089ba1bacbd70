"""One function per stage, each resumable, and `run` for all of them. Executors come from outside, when first needed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ntkpipe
from ntkpipe.config import RunConfig
from ntkpipe.errors import CorruptionError, DataError, IncompleteError
from ntkpipe.events.event import Emit, Event, Kind, Paced, Tell, silent, stage, to_all
from ntkpipe.gram.progress import tell_tiles
from ntkpipe.planning.text import describe_tiles
from ntkpipe.predictions.metrics import compute_metrics, write_metrics
from ntkpipe.predictions.read import verify_predictions
from ntkpipe.predictions.write import write_predictions
from ntkpipe.report.terminal import chosen_lines, fold_lines, summary
from ntkpipe.run import predicting as prediction
from ntkpipe.run import solving
from ntkpipe.run.beside_infinite import beside_infinite_of
from ntkpipe.run.context import RunContext
from ntkpipe.run.listeners import ProgressFile, RunLog
from ntkpipe.run.prepare import forget_data, has_data, prepare
from ntkpipe.run.report_inputs import write_report
from ntkpipe.run.run_dir import RunDir
from ntkpipe.run.status import is_finished
from ntkpipe.run.validation.setting import check_setting
from ntkpipe.run.validation.whole import validate_run
from ntkpipe.run.watching import Watch, watching
from ntkpipe.solvers.solution import Solution, write_arrays
from ntkpipe.tasks.executor import Executor
from ntkpipe.tiles import audit
from ntkpipe.units import counted, human_bytes, human_seconds

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
    _context: RunContext | None = None
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

    def _note(self, stage: str, text: str) -> None:
        """A line for people alone."""
        self._emit(Event(Kind.NOTE, stage, text))

    def context(self) -> RunContext:
        """The data, the plan and the kernels; made by the first call."""
        if self._context is None:
            began = time.monotonic()
            receipt, path = self.run.receipt("data"), self.run.config.data.path
            self.run.require_store()
            # A run whose raw data is gone goes on with the images that it has prepared, and so does one whose data is the same,
            # wherever it lies now.
            source = receipt["source"] if receipt is not None and has_data(self.run.config, receipt) else None
            begun = None if receipt is None else receipt.get("tiles_stored")
            found = prepare(
                self.run.config, lambda line: self._note("", line), source=source, siblings=self.siblings, begun=begun
            )
            # Stored as chosen, not as `auto`: a later version may choose otherwise.
            self.run = dataclasses.replace(self.run, config=found.config)
            facts = {"fingerprint": found.data.fingerprint, "labels": found.data.labels_key}
            if receipt is not None and any(receipt.get(name) != value for name, value in facts.items()):
                raise DataError(
                    f"{path or self.run.config.data.kind} is not what {self.run.path} was started with: its points or "
                    "labels have changed. Give the run on the new data a run_dir of its own."
                )
            self.run.begin()
            for text in found.warnings:
                self.warn(text)
            if receipt is None or receipt.get("source") != found.source:
                self._finish(
                    "data",
                    time.monotonic() - began,
                    images=found.data.prefix,
                    source=found.source,
                    path=None if path is None else str(Path(path).resolve()),
                    **facts,
                    n_train=found.kernels.training_points,
                    n_test=found.kernels.test_points,
                    image_shape=list(found.data.shape("train")[1:]),
                    tiles_stored=found.opened.tiles.stored,
                )
            self._context = found
        return self._context

    def warn(self, text: str) -> None:
        """Tell and log a warning."""
        self._emit(Event(Kind.WARNING, "", text))

    def gram(self) -> None:
        """Compute what is missing: tiles, or the diagonals alone where tiles are not stored."""
        opened, solver = self.context().opened, self.run.config.solver
        # A receipt torn by a power cut, or one whose tile is gone, must not count: presence and sizes are checked here,
        # checksums whenever a tile is read.
        self._discard(deep=False)
        missing = opened.missing()
        if not missing:
            if self.run.receipt("gram") is None:
                opened.source.check_found(opened.blocks.n, solver)
                record = opened.record()
                self._finish("gram", 0.0, **record, computed=0, reused=record["tiles"], pairs=0)
            self._note("gram", f"{opened.describe()}: {opened.where}")
            return
        for line in filter(None, describe_tiles(opened.tiles).splitlines()):
            self._note("plan", line)
        executor, holder = self.executor(), f"ntkpipe gram of {self.run.path}"
        try:
            opened.check_scale(solver, executor)
        except (CorruptionError, IncompleteError):
            if not self._mend_data():
                raise
            opened = self.context().opened
            opened.check_scale(solver, executor)
        began = time.monotonic()
        with stage(self._emit, "gram", Kind.TILES_DONE) as tell:
            # Of diagonals alone there is nothing to count.
            progress = tell_tiles(self._emit, tell) if opened.tiles.stored else None
            try:
                report = opened.compute(executor, progress, holder=holder, missing=missing)
            except IncompleteError:
                if not self._mend_data():
                    raise
                opened = self.context().opened
                report = opened.compute(executor, progress, holder=holder)
        seconds = time.monotonic() - began
        earlier = self.run.receipt("gram") or {}
        self._finish(
            "gram",
            seconds,
            **opened.record(),
            computed=report.computed,
            reused=report.reused,
            pairs=report.pairs,
            worker_seconds=round(report.worker_seconds, 3),
            computed_in_all=report.computed + int(earlier.get("computed_in_all", 0)),
            retries=report.retries,
            second_copies=report.copies,
        )
        if not opened.tiles.stored:
            self._note("gram", f"{opened.describe()}; diagonals stored in {human_seconds(seconds)}: {opened.where}")
            return
        rate = report.pairs / seconds if seconds > 0 else 0.0
        self._note(
            "gram",
            f"{report.computed:,} tiles computed, {report.reused:,} reused, {human_seconds(seconds)}, {rate:.3g} pairs/s, "
            f"{human_bytes(opened.tiles.disk_bytes)} in {', '.join(held.where for held in opened.stores)}",
        )

    def solve(self) -> None:
        """Solve every kernel, one after the other."""
        context = self.context()
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
        with stage(self._emit, "solve") as tell:
            self._solved = {}
            for name in context.config.predict.kernels:
                solved = self._repairing(lambda name=name: solving.solve(context, name, self.executor(), tell))
                solving.save(solved, self.run)
                self._solved[name] = solved
            facts = {name: solved.facts for name, solved in self._solved.items()}
            files = [solving.saved_file(name, self.run) for name in facts]
            self._finish("solve", time.monotonic() - began, files=files, kernels=facts)

    def predict(self) -> None:
        """Means, bounds and variances of every kernel, time and ridge; metrics."""
        context = self.context()
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
        names = context.config.predict.kernels
        solved = [self._solution(name) for name in names]
        times = prediction.resolve_times(context, solved)
        with stage(self._emit, "predict") as progress:
            parts, warnings = [], list(context.warnings)
            for one in solved:
                progress(
                    f"{one.name}: {counted(len(times), 'time')}, {counted(len(one.problem.ridges), 'ridge')}, "
                    f"{counted(context.kernels.test_points, 'point')}"
                )
                part = self._repairing(
                    lambda one=one: prediction.predict_kernel(self.context(), one, times, self.executor(), progress)
                )
                parts.append(part)
                for text in part.warnings:
                    self.warn(text)
                    warnings.append(text)
            selection = self._select(solved, times, progress)
            folds = prediction.validate(context, solved, times)
            predictions = prediction.collect(
                context, solved, parts, warnings, selection, folds, beside_infinite_of(context)
            )
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
                **_estimated(metrics),
            )
        for line in [*summary(metrics), *chosen_lines(metrics), *fold_lines(metrics)]:
            self._note("predict", line)

    def _select(self, solved: Sequence[Solution], times: tuple[float, ...], tell: Tell) -> dict[str, Any] | None:
        """The time and ridge that training points choose, of every kernel; None where none are to be chosen."""
        method = self.run.config.predict.selection
        if method == "none":
            return None

        found = {
            one.name: self._repairing(
                lambda one=one: prediction.select(self.context(), one, times, self.executor(), tell)
            )
            for one in solved
        }
        residuals = {name: chosen.residuals for name, chosen in found.items() if chosen.residuals is not None}
        if residuals:
            index = self.context().data.labels().train_index[: self.context().kernels.n]
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
        with stage(self._emit, "report"):
            page = write_report(self.run, self.context())
            files = [file for file in page.parent.rglob("*") if file.is_file()]
            self._finish("report", time.monotonic() - began, files=files, page=str(page))
        self._note("report", str(page))

    def validate(self) -> Path:
        """Finite networks beside the infinite one; returns the folder of what was found. Raises as `validate_run` does."""
        check_setting(self.run.config)
        self.context()
        self.gram()
        return validate_run(self.run, self.context(), self.executor(), self._emit)

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
                f"nothing to do: {self.run.path} finished {(self.run.receipt(self.run.stages[-1]) or {})['finished']} with this very "
                "configuration",
            )
            return False
        self.context()
        self._emit(Event(Kind.RUN_BEGUN, facts={"pid": os.getpid(), "ntkpipe": ntkpipe.__version__}))
        self.gram()
        self.solve()
        self.predict()
        if self.run.config.report:
            self.report()
        self._emit(Event(Kind.RUN_DONE))
        return True

    def _finish(self, name: str, seconds: float, **facts: Any) -> None:
        receipt = self.run.finish(name, seconds, **facts)
        self._emit(Event(Kind.STAGE_DONE, name, facts=receipt, elapsed=seconds))

    def _solution(self, name: str) -> Solution:
        """What was solved, in this process or an earlier one; what is left of it no more is solved again."""
        if self._solved is None or name not in self._solved:
            try:
                return solving.restore(self.context(), name, self.run)
            except IncompleteError as error:
                self.warn(str(error))
            self.run.forget("solve")
            self.solve()
            assert self._solved is not None
        return self._solved[name]

    def _require_tiles(self) -> None:
        if missing := self.context().opened.missing(own=True):
            raise IncompleteError(f"{missing.describe()} is not computed yet: ntkpipe gram run_dir={self.run.path}")

    def _repairing(self, work: Callable[[], Any]) -> Any:
        """Do `work`; tiles that turn out damaged are found, named and recomputed, and the work taken up again."""
        for _ in range(_REPAIRS):
            try:
                return work()
            except CorruptionError as error:
                self.warn(f"{error} Looking for what is damaged, to make it again.")
                self._mend_data()
                self._discard(deep=True)
                self.gram()
        return work()

    def _mend_data(self) -> bool:
        """Write damaged prepared data again, from the raw data; False if there are none."""
        context = self.context()
        damaged = context.data.find_damage()
        for text in damaged:
            self.warn(f"{text}; preparing the data again")
        if damaged:
            forget_data(context)
            self._context = None
            self.context()
        return bool(damaged)

    def _discard(self, *, deep: bool) -> None:
        """Find damaged tiles (see `audit.verify`) and drop them, by name, so that they are computed again."""
        for store in self.context().opened.stores:
            for label, i, j in audit.repair(store, audit.verify(store, deep=deep)):
                self.warn(f"tile ({i}, {j}) of {label} in {store.where} is damaged or gone and is computed again")


def _estimated(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The largest estimate of an error, where there are any."""
    found = [entry["max_error_estimate"] for entry in metrics["entries"] if "max_error_estimate" in entry]
    return {"max_error_estimate": max(found)} if found else {}
