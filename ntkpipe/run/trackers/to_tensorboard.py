"""TensorBoard event files in the run's folder: tensorboard --logdir RUN_DIR/trackers/tensorboard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TensorboardTracker:
    """One folder of event files."""

    def __init__(self, run: str, folder: Path, config: Mapping[str, str]) -> None:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]

        self._writer: Any = SummaryWriter(logdir=str(folder))
        table = "\n".join(f"| {name} | {value} |" for name, value in config.items())
        self._writer.add_text(run, f"| setting | value |\n|---|---|\n{table}")

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker.numbers`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def file(self, path: Path) -> None:
        """See `Tracker.file`; only images are recorded."""
        if path.suffix == ".png":
            import numpy as np
            from PIL import Image

            with Image.open(path) as image:
                self._writer.add_image(path.stem, np.asarray(image.convert("RGB")), dataformats="HWC")

    def close(self, *, ok: bool) -> None:
        """See `Tracker.close`."""
        self._writer.add_text("outcome", "finished" if ok else "failed")
        self._writer.close()


def open_tracker(run: str, folder: Path, config: Mapping[str, str]) -> TensorboardTracker:
    """Start a folder of event files."""
    return TensorboardTracker(run, folder, config)
