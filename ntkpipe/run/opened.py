"""A run's folder from Python: its configuration, how far it is, and what it has found. Only read."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ntkpipe.config import FiniteConfig, RunConfig, from_dict
from ntkpipe.dynamics.spectrum import Spectrum
from ntkpipe.errors import IncompleteError
from ntkpipe.events.lines import Progress, listener_of
from ntkpipe.predictions.metrics import read_metrics
from ntkpipe.predictions.read import read_predictions
from ntkpipe.predictions.schema import Predictions
from ntkpipe.run import status as told
from ntkpipe.run.new_points import predict_new
from ntkpipe.run.prepare import reopen
from ntkpipe.run.run_dir import RunDir
from ntkpipe.run.spectrum import spectrum_of_run
from ntkpipe.run.validation.setting import check_setting
from ntkpipe.run.validation.whole import validate_run
from ntkpipe.tasks.executor import Executor
from ntkpipe.tasks.serial import SerialExecutor


@dataclass(frozen=True)
class Page:
    """A run's report: one HTML file, which notebooks show in a frame of its own.

    Args:
        path: of the file.
    """

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        # Without sandbox permissions nothing in the frame could run, should the page have been replaced.
        page = escape(self.path.read_text(encoding="utf-8"), quote=True)
        return (
            f'<iframe srcdoc="{page}" sandbox="" style="width: 100%; height: 40rem; border: 1px solid #8884"></iframe>'
        )


class Run:
    """A run that is stored, finished or not. Made by `open_run`.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: RunDir) -> None:
        self._folder = folder

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self._folder.path

    @property
    def config(self) -> RunConfig:
        """Its settings, as they were checked; paths are absolute."""
        return self._folder.config

    @property
    def is_finished(self) -> bool:
        """Whether every stage is done."""
        return told.status(self._folder)[1]

    def status(self) -> str:
        """What is done and what is left, as `ntkpipe status` prints it."""
        return "\n".join(told.status(self._folder)[0])

    def predict(
        self, x: Any, *, layout: str | None = None, diagonal: Any = None, executor: Executor | None = None
    ) -> Predictions:
        """Predictions of new points by the finished run: its kernels, times, ridges, variances and noise. Nothing that is stored changes.

        Args:
            x: a frame with the columns of the run's table, or an array like the run's points; of `kernel=gram` the kernel between p new
                points and the n training points, (p, n). Targets are not needed.
            layout: of images, `NHWC` or `NCHW`; None is that of the run.
            diagonal: of `kernel=gram`, (p,) `k(x, x)` of the new points: variances need it, and error bounds are estimates without it.
            executor: where the kernel of the new points is computed, a part of it at a time; None is this process. Other processes keep it
                beside the run's tiles until it was used.

        Raises:
            ConfigError: for variances of `kernel=gram` without `diagonal`.
            DataError: if they are not like the run's points.
            IncompleteError: if the run is not solved yet.
            StoreError: if its store is gone.
        """
        return predict_new(self._folder, x, layout=layout, diagonal=diagonal, choose=lambda seconds: executor)

    def predictions(self) -> Predictions:
        """Means, error bounds and variances for every kernel, time and ridge.

        Raises:
            IncompleteError: if there are none yet.
        """
        self._folder.require("predict")
        return read_predictions(self.path / "predictions.zarr")

    def metrics(self) -> dict[str, Any]:
        """What `metrics.json` holds: accuracies, losses and bounds for every kernel, time and ridge.

        Raises:
            IncompleteError: if there are none yet.
        """
        self._folder.require("predict")
        return read_metrics(self.path / "metrics.json")

    def spectrum(
        self, kernel: str | None = None, *, probes: int = 32, top: int = 200, executor: Executor | None = None
    ) -> Spectrum:
        """Eigenvalues, label energy and predicted learning curves of one kernel, from the stored tiles; see `ntkpipe.spectrum`.

        Args:
            kernel: `ntk`, `nngp`, ...; None is the first that the run predicts with.
            probes: random vectors, of more than 2,000 points.
            top: leading eigenvalues, likewise.
            executor: of the products; None is this process.

        Raises:
            ConfigError: if the run has no such kernel.
            IncompleteError: if its tiles are not there yet.
        """
        return spectrum_of_run(self._folder, executor or SerialExecutor(), kernel, probes=probes, top=top)

    def validate(self, *, executor: Executor | None = None, progress: Progress = None, **finite: Any) -> dict[str, Any]:
        """Train finite networks beside the infinite one, as `ntkpipe validate` does; what is trained already is kept.

        Args:
            executor: where networks are trained; None is this process.
            progress: who listens; see `ntkpipe.events.lines.Progress`.
            **finite: settings of the group `finite`, such as `widths=[64, 128]` and `networks=20`; the others are the run's.

        Returns:
            What `validation.json` in the run's folder holds: settings, claims with exponents and verdicts, curves.

        Raises:
            ConfigError, ResourceError: before anything is trained.
            IncompleteError: if the run's tiles are not there yet.
        """
        self._folder.require("gram")
        told = from_dict(FiniteConfig, {**dataclasses.asdict(self.config.finite), **finite}, "finite.")
        config = dataclasses.replace(self.config, finite=told)
        check_setting(config)
        run = dataclasses.replace(self._folder, config=config)
        with run.held():
            context = dataclasses.replace(reopen(run), config=config)
            folder = validate_run(run, context, executor or SerialExecutor(), listener_of(progress))
        return json.loads((folder / "validation.json").read_text(encoding="utf-8"))

    def report(self) -> Page:
        """The page with the figures; a notebook shows it.

        Raises:
            IncompleteError: if it is not there.
        """
        page = self.path / "report" / "report.html"
        if not page.exists():
            raise IncompleteError(f"{page} is not there: ntkpipe report run_dir={self.path}")
        return Page(page)

    def __repr__(self) -> str:
        return self.status()


def open_run(path: str | os.PathLike[str], *, store: str | None = None) -> Run:
    """Open the folder of a run.

    Args:
        path: of the folder.
        store: where its Gram store is now, if it has moved.

    Raises:
        ConfigError: if the folder is not a run's.
    """
    return Run(RunDir.open(Path(path), store=store))
