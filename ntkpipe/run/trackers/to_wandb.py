"""Weights & Biases. Its environment variables (WANDB_PROJECT, WANDB_MODE, ...) set the project, entity and mode."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class WandbTracker:
    """One W&B run."""

    def __init__(self, run: str, folder: Path, config: Mapping[str, str]) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        folder.mkdir(parents=True, exist_ok=True)
        self._run: Any = wandb.init(name=run, dir=str(folder), config=dict(config))

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker.numbers`. W&B has one increasing step for all names, so the step is recorded as a value."""
        self._run.log({**values, "step": step})

    def file(self, path: Path) -> None:
        """See `Tracker.file`."""
        self._run.save(str(path), base_path=str(path.parent), policy="now")

    def close(self, *, ok: bool) -> None:
        """See `Tracker.close`."""
        self._run.finish(exit_code=0 if ok else 1)


def open_tracker(run: str, folder: Path, config: Mapping[str, str]) -> WandbTracker:
    """Start a W&B run."""
    return WandbTracker(run, folder, config)
