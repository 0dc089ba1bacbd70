"""A folder whose runs share a store and go on in this process: for modules of which each test makes a run and compares it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from ntkpipe.cli.main import main
from ntkpipe.predictions.read import read_predictions
from ntkpipe.predictions.schema import Predictions
from ntkpipe.run.run_dir import RunDir

# Of small runs in this process: what most tests need.
QUICK = ("cluster=serial", "data=digits", "data.train_size=60", "data.test_size=20", "grid.edge=32")


class Lab:
    """Such a folder.

    Args:
        path: of the folder, and where words with relative paths look.
        words: of every run.
    """

    def __init__(self, path: Path, *words: str) -> None:
        self.path, self.words = path, words

    def command(self, *words: str) -> int:
        """The exit code of any command."""
        with contextlib.chdir(self.path):
            return main(words)

    def run(self, name: str, *words: str) -> Predictions:
        """Run in the folder `name`; must succeed."""
        assert self.command("run", *self.words, f"run_dir={name}", *words) == 0
        return self.predictions(name)

    def predictions(self, name: str) -> Predictions:
        return read_predictions(self.path / name / "predictions.zarr")

    def opened(self, name: str) -> RunDir:
        return RunDir.open(self.path / name)

    def receipt(self, name: str, stage: str) -> dict[str, Any]:
        return json.loads((self.path / name / "stages" / f"{stage}.json").read_text())

    def metrics(self, name: str) -> dict[str, Any]:
        return json.loads((self.path / name / "metrics.json").read_text())
