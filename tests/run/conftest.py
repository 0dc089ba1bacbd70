from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from blank_figures import blank, drawn
from lab import QUICK

from ntkpipe.cli.main import main
from ntkpipe.predictions.read import read_predictions

__all__ = ["Outcome", "Workplace", "blank", "drawn", "real_images", "work"]


@dataclass
class Outcome:
    code: int
    out: str
    err: str


class Workplace:
    """An empty folder in which `ntkpipe` runs, in this process or in one of its own."""

    quick = QUICK

    def __init__(self, path: Path, capture: Callable[[], tuple[str, str]]) -> None:
        self.path = path
        self._capture = capture

    def __call__(self, *words: str) -> Outcome:
        """Run in this process."""
        self._capture()
        code = main(words)
        return Outcome(code, *self._capture())

    def ok(self, *words: str) -> Outcome:
        """Run in this process; must succeed."""
        found = self(*words)
        assert found.code == 0, found.err
        return found

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "ntkpipe", *words],
            cwd=self.path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    @staticmethod
    def kill(process: subprocess.Popen) -> None:
        """SIGKILL, at once and for good."""
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()

    @staticmethod
    def wait_for(condition: Callable[[], object], process: subprocess.Popen) -> None:
        """Until the condition holds, while the process lives, however slow it is."""
        while not condition():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)

    def receipt(self, run: str, stage: str) -> dict:
        return json.loads((self.path / run / "stages" / f"{stage}.json").read_text())

    def predictions(self, run: str):
        return read_predictions(self.path / run / "predictions.zarr")

    def objects(self, pattern: str) -> list[Path]:
        """Stored files; leases and markers of use come and go."""
        return sorted(p for p in (self.path / "store").glob(pattern) if p.is_file() and ".leases" not in p.parts)

    def chunks(self, kernel: str = "*", block: str = "*") -> list[Path]:
        return self.objects(f"gram/*/tiles.zarr/{kernel}/{block}/c/*/*")

    def receipts(self, block: str = "*") -> list[Path]:
        return self.objects(f"gram/*/receipts/{block}/*.json")


@pytest.fixture
def work(tmp_path, capsys, monkeypatch) -> Workplace:
    monkeypatch.chdir(tmp_path)
    return Workplace(tmp_path, capsys.readouterr)


@pytest.fixture
def real_images(tmp_path, cifar10_subset) -> Callable[..., Path]:
    """Writes an npz of the first images of the CIFAR-10 subset, with `changes` to its arrays."""

    def write(n: int, p: int, name: str = "images.npz", **changes: np.ndarray) -> Path:
        with np.load(cifar10_subset, allow_pickle=False) as data:
            arrays: dict[str, np.ndarray] = {
                "x_train": data["x_train"][:n],
                "y_train": data["y_train"][:n].astype(np.int64),
                "x_test": data["x_test"][:p],
                "y_test": data["y_test"][:p].astype(np.int64),
            }
        np.savez(tmp_path / name, **{**arrays, **changes})
        return tmp_path / name

    return write
