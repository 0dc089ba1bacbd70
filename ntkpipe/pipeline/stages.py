"""One function per stage, each resumable, and `run` for all of them. Executors come from outside, when first needed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import ntkpipe
from ntkpipe.errors import CorruptionError, IncompleteError
from ntkpipe.gram.plan import human_bytes, human_seconds
from ntkpipe.gram.progress import Progress as GramProgress
from ntkpipe.gram.stage import compute_gram
from ntkpipe.pipeline import predict as prediction
from ntkpipe.pipeline import solve as solving
from ntkpipe.pipeline.inputs import Inputs, prepare
from ntkpipe.pipeline.reporting import write_report
from ntkpipe.pipeline.run_dir import Progress, RunDir
from ntkpipe.predictions.read import read_predictions
from ntkpipe.predictions.write import write_predictions
from ntkpipe.report.metrics import compute_metrics, write_metrics
from ntkpipe.tasks.executor import Executor
from ntkpipe.tiles import audit

# Damaged tiles met in the middle of a solve are recomputed and the solve goes on, so often.
_REPAIRS = 3

Echo = Callable[[str], None]


@dataclass
class Job:
    """A run at work.

    Args:
        run: its folder.
        executor: makes the executor when a stage first needs one: bad input is refused before anything starts.
        echo: receives lines for people.
    """

    run: RunDir
    executor: Callable[[], Executor]
    echo: Echo
    _inputs: Inputs | None = None
    _solved: dict[str, solving.Solved] | None = None

    def inputs(self) -> Inputs:
        """The prepared images, the plan and the Gram store; made by the first call."""
        if self._inputs is None:
            began = time.monotonic()
            self._inputs = prepare(self.run.config, self.echo)
            for text in self._inputs.warnings:
                self.warn(text)
            if self.run.receipt("data") is None:
                shape = self._inputs.images.shape("train")
                self.run.finish(
                    "data",
                    time.monotonic() - began,
                    images=self._inputs.images.prefix,
                    fingerprint=self._inputs.images.fingerprint,
                    n_train=self._inputs.n_train,
                    n_test=self._inputs.n_test,
                    image_shape=list(shape[1:]),
                )
        return self._inputs

    def warn(self, text: str) -> None:
        """Tell and log a warning."""
        self.echo(f"warning  {text}")
        self.run.log("warning", text=text)

    def gram(self) -> None:
        """Compute the missing tiles."""
        inputs = self.inputs()
        plan, store = inputs.plan, inputs.gram
        # A receipt torn by a power cut, or one whose tile is gone, must not count: presence and sizes are checked here,
        # checksums whenever a tile is read.
        self._discard(audit.verify(store, deep=False))
        missing = sum(1 for block in plan.blocks for _ in store.missing(block.block, block.used))
        missing += sum(len(store.missing_diagonal(block.block, block.used.rows)) for block in plan.blocks)
        if not missing:
            if self.run.receipt("gram") is None:
                self.run.finish("gram", 0.0, store=store.where, tiles=plan.tiles, computed=0, reused=plan.tiles)
            self.echo(f"gram     all {plan.tiles:,} tiles are stored: {store.where}")
            return
        for line in filter(None, plan.describe().splitlines()):
            self.echo(f"plan     {line}")
        executor = self.executor()
        progress = Progress(self.run, "gram", self.echo)

        def tell(p: GramProgress) -> None:
            progress(p.line().removeprefix("gram: "), final=p.done >= p.total, **p.record())

        began = time.monotonic()
        with store.lease(f"ntkpipe gram of {self.run.path}"):
            report = compute_gram(executor, store, inputs.images, plan, tell)
        seconds = time.monotonic() - began
        earlier = self.run.receipt("gram") or {}
        self.run.finish(
            "gram",
            seconds,
            store=store.where,
            tiles=plan.tiles,
            computed=report.computed,
            reused=report.reused,
            pairs=report.pairs,
            worker_seconds=round(report.worker_seconds, 3),
            computed_in_all=report.computed + int(earlier.get("computed_in_all", 0)),
        )
        rate = report.pairs / seconds if seconds > 0 else 0.0
        self.echo(
            f"gram     {report.computed:,} tiles computed, {report.reused:,} reused, {human_seconds(seconds)}, "
            f"{rate:.3g} pairs/s, {human_bytes(plan.disk_bytes)} in {store.where}"
        )

    def solve(self) -> None:
        """Solve every kernel, one after the other."""
        inputs = self.inputs()
        self._require_tiles()
        began = time.monotonic()
        if (receipt := self.run.receipt("solve")) is not None:
            self.echo(f"solve    finished {receipt['finished']}")
            return
        progress = Progress(self.run, "solve", self.echo)

        def tell(line: str, *, force: bool = False, **facts: Any) -> None:
            progress(line, final=force, **facts)

        self._solved = {}
        for name in inputs.config.predict.kernels:
            solved = self._repairing(lambda name=name: solving.solve(inputs, name, self.executor(), tell))
            solving.save(solved, self.run)
            self._solved[name] = solved
        facts = {name: solved.facts for name, solved in self._solved.items()}
        self.run.finish("solve", time.monotonic() - began, kernels=facts)

    def predict(self) -> None:
        """Means, bounds and variances of every kernel, time and ridge; metrics."""
        inputs = self.inputs()
        if (receipt := self.run.receipt("predict")) is not None and (self.run.path / "predictions.zarr").exists():
            self.echo(f"predict  finished {receipt['finished']}: {self.run.path / 'predictions.zarr'}")
            return
        self.run.require("solve")
        self._require_tiles()
        began = time.monotonic()
        names = inputs.config.predict.kernels
        solved = [(self._solved or {}).get(name) or solving.restore(inputs, name, self.run) for name in names]
        times = prediction.resolve_times(inputs, solved)
        progress = Progress(self.run, "predict", self.echo)
        parts, warnings = [], list(inputs.warnings)
        for one in solved:
            progress(
                f"{one.problem.name}: {len(times)} times, {len(one.problem.ridges)} ridges, {inputs.n_test:,} images"
            )
            parts.append(
                self._repairing(lambda one=one: prediction.predict_kernel(inputs, one, times, self.executor()))
            )
            for text in prediction.warnings_of(one, times):
                self.warn(text)
                warnings.append(text)
        predictions = prediction.collect(inputs, solved, parts, times, warnings)
        self._solved = None  # a basis of a gigabyte is not needed any more
        write_predictions(predictions, self.run.path / "predictions.zarr", overwrite=True)
        metrics = compute_metrics(predictions)
        write_metrics(metrics, self.run.path / "metrics.json")
        self.run.finish(
            "predict",
            time.monotonic() - began,
            fingerprint=predictions.fingerprint(),
            max_error_bound=max((e["max_error_bound"] or 0.0) for e in metrics["entries"]),
        )
        for line in summary(metrics):
            self.echo(f"predict  {line}")

    def report(self) -> None:
        """Figures and the HTML page."""
        began = time.monotonic()
        self.run.require("predict")
        page = write_report(self.run, self.inputs())
        self.run.finish("report", time.monotonic() - began, page=str(page))
        self.echo(f"report   {page}")

    def all(self) -> bool:
        """Every stage that is not finished.

        Returns:
            False if there was nothing to do.
        """
        if is_finished(self.run):
            self.echo(
                f"nothing to do: {self.run.path} finished {(self.run.receipt('report') or {})['finished']} with this very "
                "configuration"
            )
            return False
        self.run.log("run started", pid=os.getpid(), ntkpipe=ntkpipe.__version__)
        self.gram()
        self.solve()
        self.predict()
        self.report()
        self.run.log("run finished")
        return True

    def _require_tiles(self) -> None:
        inputs = self.inputs()
        for block in inputs.plan.blocks:
            first = next(iter(inputs.gram.missing(block.block, block.used)), None)
            if first is not None:
                raise IncompleteError(
                    f"tile ({first.i}, {first.j}) of {block.block} is not computed yet: "
                    f"ntkpipe gram run_dir={self.run.path}"
                )

    def _repairing(self, work: Callable[[], Any]) -> Any:
        """Do `work`; tiles that turn out damaged are found, named and recomputed, and the work taken up again."""
        for _ in range(_REPAIRS):
            try:
                return work()
            except CorruptionError as error:
                self.warn(f"{error}; looking for damaged tiles and computing them again")
                self._discard(audit.verify(self.inputs().gram))
                self.gram()
        return work()

    def _discard(self, problems: Iterable[audit.Problem]) -> None:
        """Drop damaged tiles, by name, so that they are computed again."""
        store = self.inputs().gram
        for label, i, j in audit.repair(store, problems):
            self.warn(f"tile ({i}, {j}) of {label} in {store.where} is damaged or gone and is computed again")


def is_finished(run: RunDir) -> bool:
    """Whether every stage of the run has its receipt and its output is there."""
    outputs = ("predictions.zarr", "metrics.json", "report/report.html")
    return run.receipt("report") is not None and all((run.path / name).exists() for name in outputs)


def summary(metrics: dict[str, Any]) -> list[str]:
    """The table of accuracies (or losses) for the terminal: a line per kernel and ridge, a column per time."""
    accurate = metrics["task"] == "classification"
    rows: dict[tuple[str, float], list[str]] = {}
    times: list[float] = []
    for entry in metrics["entries"]:
        value = entry["accuracy"] if accurate else entry["mse"]
        if entry["time"] not in times:
            times.append(entry["time"])
        text = "-" if value is None else f"{value:.4f}"
        rows.setdefault((entry["kernel"], entry["ridge"]), []).append(text)
    width = max(9, *(len(f"t={t:g}") + 1 for t in times))
    head = f"{'accuracy' if accurate else 'mse':<22}" + "".join(f"{f't={t:g}':>{width}}" for t in times)
    lines = [head]
    lines += [f"{f'{k}, ridge {r:g}':<22}" + "".join(f"{v:>{width}}" for v in vs) for (k, r), vs in rows.items()]
    return lines


def load_predictions(run: RunDir) -> Any:
    """The predictions of a finished run.

    Raises:
        IncompleteError: if there are none yet.
    """
    run.require("predict")
    return read_predictions(run.path / "predictions.zarr")
