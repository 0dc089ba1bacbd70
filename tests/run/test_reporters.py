from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from ntkpipe.errors import ConfigError
from ntkpipe.run.trackers.protocol import TRACKERS, Reporters, open_reporters, require_packages

METRICS = {
    "entries": [
        {"kernel": "ntk", "ridge": 0.0, "time": 1.0, "accuracy": 0.25, "mse": 0.5, "max_error_bound": None},
        {"kernel": "nngp", "ridge": 0.0, "time": 1.0, "accuracy": None, "mse": 0.25, "max_error_bound": 1e-6},
        {"kernel": "ntk", "ridge": 0.0, "time": "inf", "accuracy": 0.5, "mse": 0.125, "max_error_bound": float("inf")},
    ]
}


class Recorder:
    def __init__(self) -> None:
        self.calls: list = []

    def numbers(self, values, step):
        self.calls.append((step, dict(values)))

    def file(self, path):
        self.calls.append(path)

    def close(self, *, ok):
        self.calls.append(ok)


def test_what_trackers_are_told():
    one = Recorder()
    reporters = Reporters({"one": one})
    reporters.progress(
        "gram", {"done": 3, "rate": 2.5, "eta": None, "line": "3 of 4", "final": True, "bad": float("nan")}
    )
    reporters.finished("gram", {"seconds": 2.0})
    reporters.metrics(METRICS)
    reporters.file(Path("report.html"))
    reporters.close(ok=True)
    reporters.progress("solve", {"steps": 1})  # closed: nobody is told
    assert one.calls == [
        (1, {"gram/done": 3.0, "gram/rate": 2.5}),
        (2, {"gram/seconds": 2.0}),
        (
            0,
            {
                "test/ntk/ridge_0/accuracy": 0.25,
                "test/ntk/ridge_0/mse": 0.5,
                "test/nngp/ridge_0/mse": 0.25,
                "test/nngp/ridge_0/max_error_bound": 1e-6,
            },
        ),
        (1, {"test/ntk/ridge_0/accuracy": 0.5, "test/ntk/ridge_0/mse": 0.125}),
        Path("report.html"),
        True,
    ]


def test_a_tracker_that_fails_costs_nothing(caplog):
    class Broken(Recorder):
        def numbers(self, values, step):
            raise ConnectionError("the server is away")

    good, bad = Recorder(), Broken()
    reporters = Reporters({"bad": bad, "good": good})
    with caplog.at_level(logging.WARNING):
        reporters.progress("gram", {"done": 1})
        reporters.progress("gram", {"done": 2})
    assert caplog.text.count("bad failed and is disabled") == 1
    assert [step for step, _ in good.calls] == [1, 2]


def test_names_and_packages_are_checked_first(monkeypatch):
    with pytest.raises(ConfigError, match="notes is not one of mlflow, wandb, tensorboard"):
        require_packages(["notes"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, (_, package) in TRACKERS.items():
        with pytest.raises(ConfigError, match=f"pip install {package}"):
            require_packages([name])


def test_tensorboard_files_can_be_read_back(tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    reporters = open_reporters(["tensorboard"], "trial", tmp_path, {"kernel": {"depth": 3}})
    reporters.metrics(METRICS)
    reporters.close(ok=True)
    (file,) = (tmp_path / "trackers" / "tensorboard").glob("events.*")
    data = file.read_bytes()
    for text in (b"test/ntk/ridge_0/accuracy", b"kernel.depth", b"finished"):
        assert text in data


def test_no_tracker_is_imported_unless_asked_for():
    code = (
        "import sys, ntkpipe.cli.compose; print([m for m in ('mlflow', 'wandb', 'tensorboardX') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
