"""The stages of a run, which can all be resumed. The caller gives the executor, which is made on first use."""

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
from ntkpipe.events.event import Emit, Event, Kind, Tell, silent, stage
from ntkpipe.gram.progress import tell_tiles
from ntkpipe.planning.text import describe_tiles
from ntkpipe.predictions.metrics import compute_metrics, largest_errors, write_metrics
from ntkpipe.predictions.read import verify_predictions
from ntkpipe.predictions.write import write_predictions
from ntkpipe.report.drawing import can_draw, without_figures
from ntkpipe.report.terminal import chosen_lines, fold_lines, summary
from ntkpipe.run import predicting as prediction
from ntkpipe.run import solving
from ntkpipe.run.beside_infinite import beside_infinite_of
from ntkpipe.run.context import RunContext
from ntkpipe.run.listeners import recorded
from ntkpipe.run.prepare import forget_data, has_data, prepare
from ntkpipe.run.report_inputs import write_report
from ntkpipe.run.run_dir import RunDir
from ntkpipe.run.status import is_finished
from ntkpipe.run.validation.setting import check_setting
from ntkpipe.run.validation.whole import validate_run
from ntkpipe.run.watching import watching
from ntkpipe.solvers.saved_arrays import write_arrays
from ntkpipe.solvers.solution import Solution
from ntkpipe.tasks.executor import Executor
from ntkpipe.tiles import audit
from ntkpipe.units import counted, human_bytes, human_seconds

# Number of times that a solve recomputes damaged tiles and continues.
_REPAIRS = 3


@dataclass
class RunAtWork:
    """An active run, with one method per stage.

    Args:
        run: folder of the run.
        executor: makes the executor when a stage first needs one, so that bad input is refused before anything starts.
        listener: receives the events of the run; see `ntkpipe.events`.
        siblings: runs of other networks on the same images, whose missing tiles are computed in the same evaluations.
    """

    run: RunDir
    executor: Callable[[], Executor]
    listener: Emit
    siblings: tuple[RunConfig, ...] = ()
    _context: RunContext | None = None
    _solved: dict[str, Solution] | None = None
    _emit: Emit = silent

    def __post_init__(self) -> None:
        self._emit = recorded(self.run, self.listener)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[RunAtWork]:
        """Context manager that holds the run and reports its progress to watchers.

        Raises:
            HeldError: if another process holds the run.
            StoreError: if its store is missing.
            ConfigError: if an experiment tracker is not installed.
        """
        started: list[Executor] = []
        make = self.executor

        def executor() -> Executor:
            started[:] = [make()]
            return started[0]

        def publish(stage: str, numbers: Mapping[str, float]) -> None:
            if started:
                started[0].publish(stage, numbers)

        self.run.require_store()  # check before any progress is written there
        self.executor = executor
        try:
            with self.run.held(), watching(self.run, publish) as watch:
                self._emit = recorded(self.run, self.listener, watch)
                yield self
        finally:
            self.executor, self._emit = make, recorded(self.run, self.listener)

    def _note(self, stage: str, text: str) -> None:
        """Print a line that is not logged."""
        self._emit(Event(Kind.NOTE, stage, text))

    def context(self) -> RunContext:
        """Return the data, the plan and the kernels; the first call prepares them."""
        if self._context is None:
            began = time.monotonic()
            receipt, path = self.run.receipt("data"), self.run.config.data.path
            self.run.require_store()
            # A run continues with its prepared images if the raw data is missing, or if it is the same data at another
            # path.
            source = receipt["source"] if receipt is not None and has_data(self.run.config, receipt) else None
            begun = None if receipt is None else receipt.get("tiles_stored")
            found = prepare(
                self.run.config, lambda line: self._note("", line), source=source, siblings=self.siblings, begun=begun
            )
            # Store the choice instead of `auto`, because a later version may choose differently.
            self.run = dataclasses.replace(self.run, config=found.config)
            record = found.record()
            if receipt is not None and any(receipt.get(name) != record[name] for name in ("fingerprint", "labels")):
                raise DataError(
                    f"{path or self.run.config.data.kind} has changed since {self.run.path} was started (points or "
                    "labels differ). Set another run_dir for a run on the new data."
                )
            self.run.begin()
            for text in found.warnings:
                self.warn(text)
            if receipt is None or receipt.get("source") != found.source:
                where = None if path is None else str(Path(path).resolve())
                self._finish("data", time.monotonic() - began, path=where, **record)
            self._context = found
        return self._context

    def warn(self, text: str) -> None:
        """Print and log a warning."""
        self._emit(Event(Kind.WARNING, "", text))

    def gram(self) -> None:
        """Compute missing tiles, or only the diagonals if tiles are not stored."""
        opened, solver = self.context().opened, self.run.config.solver
        # A receipt damaged by a power cut, or whose tile is missing, must not count. Presence and sizes are checked
        # here, checksums whenever a tile is read.
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
            # Without stored tiles, only diagonals are computed, and there is nothing to count.
            progress = tell_tiles(self._emit, tell) if opened.tiles.stored else None
            try:
                report = opened.compute(executor, progress, holder=holder, missing=missing)
            except IncompleteError:
                if not self._mend_data():
                    raise
                opened = self.context().opened
                report = opened.compute(executor, progress, holder=holder)
        seconds = time.monotonic() - began
        earlier = int((self.run.receipt("gram") or {}).get("computed_in_all", 0))
        counts = report.record() | {"computed_in_all": report.computed + earlier}
        self._finish("gram", seconds, **opened.record(), **counts)
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
                self._solved[name] = self._repairing(
                    lambda name=name: solving.solve(context, name, self.executor(), tell)
                )
            made = list(self._solved.values())
            refined = self._repairing(lambda: solving.refine_all(self.context(), made, self.executor(), tell))
            for solved in refined:
                solving.save(solved, self.run)
                self._solved[solved.name] = solved
            facts = {name: solved.facts for name, solved in self._solved.items()}
            files = [solving.saved_file(name, self.run) for name in facts]
            self._finish("solve", time.monotonic() - began, files=files, kernels=facts)

    def predict(self) -> None:
        """Compute and store means, bounds and variances of every kernel, time and ridge, and the metrics."""
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
            self._repairing(lambda: solving.multiply_test_tiles(self.context(), solved, self.executor(), progress))
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
            self._solved = None  # free a basis of up to a gigabyte
            write_predictions(predictions, target, overwrite=True)
            metrics = compute_metrics(predictions)
            write_metrics(metrics, self.run.path / "metrics.json")
            residuals = self.run.path / "leave_one_out.npz"
            self._finish(
                "predict",
                time.monotonic() - began,
                files=[self.run.path / "metrics.json", *([residuals] if residuals.exists() else [])],
                fingerprint=predictions.fingerprint(),
                **largest_errors(metrics),
            )
        for line in [*summary(metrics), *chosen_lines(metrics), *fold_lines(metrics)]:
            self._note("predict", line)

    def _select(self, solved: Sequence[Solution], times: tuple[float, ...], tell: Tell) -> dict[str, Any] | None:
        """Choose the time and ridge of every kernel on training points; None if no choice is configured."""
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
        """Draw the figures and write the HTML page.

        Raises:
            ReportError: if the figures could not be drawn; earlier stages stay finished.
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
        if not can_draw():
            self._note("report", without_figures(f"ntkpipe report run_dir={self.run.path}"))

    def validate(self) -> Path:
        """Compare finite networks with the infinite one, and return the folder of the results.

        Raises the errors of `validate_run`.
        """
        check_setting(self.run.config)
        self.context()
        self.gram()
        return validate_run(self.run, self.context(), self.executor(), self._emit)

    def all(self) -> bool:
        """Run every stage that is not finished.

        Returns:
            False if there was nothing to do.

        Raises:
            ReportError: if the report could not be drawn; all other stages are then finished.
        """
        if is_finished(self.run):
            self._note(
                "",
                f"nothing to do: {self.run.path} finished {(self.run.receipt(self.run.stages[-1]) or {})['finished']} "
                "with this exact configuration",
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
        """Return the solution of this or an earlier process, and solve again if a part of it is missing."""
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
            raise IncompleteError(f"{missing.describe()} is not computed yet: run ntkpipe gram run_dir={self.run.path}")

    def _repairing(self, work: Callable[[], Any]) -> Any:
        """Do `work`. If tiles are damaged, find and recompute them, and resume the work."""
        for _ in range(_REPAIRS):
            try:
                return work()
            except CorruptionError as error:
                self.warn(f"{error} Searching for damaged tiles to recompute them.")
                self._mend_data()
                self._discard(deep=True)
                self.gram()
        return work()

    def _mend_data(self) -> bool:
        """Rewrite damaged prepared data from the raw data, and return whether any was damaged."""
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
        """Find damaged tiles (see `audit.verify`), report them, and delete them so that they are recomputed."""
        for store in self.context().opened.stores:
            for label, i, j in audit.repair(store, audit.verify(store, deep=deep)):
                self.warn(f"tile ({i}, {j}) of {label} in {store.where} is damaged or missing and will be recomputed")
