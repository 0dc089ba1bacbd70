"""Read-only access to a run's folder from Python: its configuration, status and results."""

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
    """A run's report: one HTML file, which notebooks show in a frame.

    Args:
        path: path of the file.
    """

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        # The frame may run scripts, such as the page's slider. They have no access to the notebook around it.
        page = escape(self.path.read_text(encoding="utf-8"), quote=True)
        return f'<iframe srcdoc="{page}" sandbox="allow-scripts" style="width: 100%; height: 40rem; border: 1px solid #8884"></iframe>'


class Run:
    """A stored run, finished or not; `open_run` makes it.

    Args:
        folder: folder of the run.
    """

    def __init__(self, folder: RunDir) -> None:
        self._folder = folder

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self._folder.path

    @property
    def config(self) -> RunConfig:
        """The checked configuration; paths are absolute."""
        return self._folder.config

    @property
    def is_finished(self) -> bool:
        """Whether every stage is finished."""
        return told.status(self._folder)[1]

    def status(self) -> str:
        """Return the status, as `ntkpipe status` prints it."""
        return "\n".join(told.status(self._folder)[0])

    def predict(
        self, x: Any, *, layout: str | None = None, diagonal: Any = None, executor: Executor | None = None
    ) -> Predictions:
        """Return predictions for new points with the run's kernels, times, ridges, variances and noise.

        Stored data does not change.

        Args:
            x: a frame with the columns of the run's table, or an array like the run's points. For `kernel=gram`, it is
                the kernel between p new points and the n training points, `(p, n)`. Targets are not needed.
            layout: layout of images, `NHWC` or `NCHW`; None takes the run's.
            diagonal: for `kernel=gram`, `k(x, x)` of the new points, `(p,)`. Variances need it, and without it error
                bounds are estimates.
            executor: computes the kernel of the new points in parts; None computes it in this process. Other processes
                store it beside the run's tiles until it is used.

        Raises:
            ConfigError: for variances of `kernel=gram` without `diagonal`.
            DataError: if the points do not match the run's points.
            IncompleteError: if the run is not solved yet.
            StoreError: if its store is missing.
        """
        return predict_new(self._folder, x, layout=layout, diagonal=diagonal, choose=lambda seconds: executor)

    def predictions(self) -> Predictions:
        """Return the means, error bounds and variances for every kernel, time and ridge.

        Raises:
            IncompleteError: if there are none yet.
        """
        self._folder.require("predict")
        return read_predictions(self.path / "predictions.zarr")

    def metrics(self) -> dict[str, Any]:
        """Return the content of `metrics.json`: accuracies, losses and bounds for every kernel, time and ridge.

        Raises:
            IncompleteError: if there are none yet.
        """
        self._folder.require("predict")
        return read_metrics(self.path / "metrics.json")

    def spectrum(
        self, kernel: str | None = None, *, probes: int = 32, top: int = 200, executor: Executor | None = None
    ) -> Spectrum:
        """Return the eigenvalues, label energies and predicted learning curves of one kernel, from the stored tiles.

        See `ntkpipe.spectrum`.

        Args:
            kernel: `ntk`, `nngp`, ...; None is the run's first kernel.
            probes: number of random vectors, for more than 2,000 points.
            top: number of leading eigenvalues, for more than 2,000 points.
            executor: computes the products; None computes them in this process.

        Raises:
            ConfigError: if the run has no such kernel.
            IncompleteError: if its tiles are not computed yet.
        """
        return spectrum_of_run(self._folder, executor or SerialExecutor(), kernel, probes=probes, top=top)

    def validate(self, *, executor: Executor | None = None, progress: Progress = None, **finite: Any) -> dict[str, Any]:
        """Train finite networks and compare them with the infinite one, as `ntkpipe validate` does.

        Networks that are already trained are reused.

        Args:
            executor: trains the networks; None trains them in this process.
            progress: receives progress; see `ntkpipe.events.lines.Progress`.
            **finite: settings of the group `finite`, such as `widths=[64, 128]` and `networks=20`; the run's settings
                are the defaults.

        Returns:
            The content of `validation.json` in the run's folder: settings, claims with exponents and verdicts, curves.

        Raises:
            ConfigError, ResourceError: before any network is trained.
            IncompleteError: if the run's tiles are not computed yet.
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
        """Return the HTML report, which a notebook displays.

        Raises:
            IncompleteError: if there is no report.
        """
        page = self.path / "report" / "report.html"
        if not page.exists():
            raise IncompleteError(f"{page} does not exist: run ntkpipe report run_dir={self.path}")
        return Page(page)

    def __repr__(self) -> str:
        return self.status()


def open_run(path: str | os.PathLike[str], *, store: str | None = None) -> Run:
    """Open the folder of a run.

    Args:
        path: the folder.
        store: the current URL of the run's store, if it has moved.

    Raises:
        ConfigError: if the folder is not a run's folder.
    """
    return Run(RunDir.open(Path(path), store=store))
