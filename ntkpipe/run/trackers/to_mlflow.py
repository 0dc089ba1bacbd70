"""MLflow. Its environment variables (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ...) set the destination."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class MlflowTracker:
    """One MLflow run."""

    def __init__(self, run: str, config: Mapping[str, str]) -> None:
        import mlflow  # pyright: ignore[reportMissingImports]

        self._mlflow: Any = mlflow
        mlflow.start_run(run_name=run)
        # MLflow refuses values beyond 500 characters.
        mlflow.log_params({name: value[:500] for name, value in config.items()})

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker.numbers`."""
        self._mlflow.log_metrics(dict(values), step=step)

    def file(self, path: Path) -> None:
        """See `Tracker.file`."""
        self._mlflow.log_artifact(str(path))

    def close(self, *, ok: bool) -> None:
        """See `Tracker.close`."""
        self._mlflow.end_run("FINISHED" if ok else "FAILED")


def open_tracker(run: str, folder: Path, config: Mapping[str, str]) -> MlflowTracker:
    """Start an MLflow run."""
    del folder
    return MlflowTracker(run, config)
