"""Following a run from elsewhere: by its object in the store, and by experiment trackers."""

from __future__ import annotations

import json
import sys
import types

import pytest

from ntkpipe.run.trackers import protocol

WORDS = ("predict.times=[10,inf]", "watch.every=0.1")


def board(work) -> dict:
    (found,) = work.objects("runs/*.json")
    return json.loads(found.read_text())


def test_a_finished_run_as_the_store_tells_it(work):
    work.ok("run", "run_dir=a", *work.quick, *WORDS)
    found = board(work)
    assert found["line"] == "finished"
    assert found["final"] is True
    assert found["run_dir"] == str(work.path / "a")
    told = work.ok("status", "store.url=store").out
    assert told.startswith("a-")
    assert "finished" in told
    assert work.ok("status", "store.url=store", f"run={told.split(':')[0]}", "watch=true").out == told
    assert work("status", "store.url=store", "run=another").code == 4
    assert "nothing to do" in work.ok("run", "run_dir=a").err


def test_a_running_and_a_killed_run(work):
    process = work.start("run", "run_dir=a", "data=digits", "cluster=serial", "grid.edge=32", "watch.every=0.1")
    work.wait_for(lambda: work.objects("runs/*.json") and board(work)["stage"] != "data", process)
    found = work("status", "store.url=store")
    assert found.code == 4
    assert ": running, " in found.out
    assert "gram" in found.out or "solve" in found.out
    work.kill(process)
    assert ": not running, " in work.ok("status", "store.url=store", "--watch").out
    assert "stopped" not in board(work)["line"]


def test_a_run_that_fails_says_why(work, monkeypatch):
    from ntkpipe.errors import NumericalError
    from ntkpipe.run import solving

    def fail(*_):
        raise NumericalError("the matrix is odd")

    monkeypatch.setattr(solving, "solve", fail)
    assert work("run", "run_dir=a", *work.quick, *WORDS).code == 7
    assert board(work)["line"] == "stopped: NumericalError: the matrix is odd"


def test_following_a_folder_until_it_is_finished(work):
    process = work.start("run", "run_dir=a", *work.quick, *WORDS)
    work.wait_for(lambda: (work.path / "a" / "run.json").exists(), process)
    told = work.ok("status", "run_dir=a", "watch=true", "every=0").out
    process.communicate()
    assert process.returncode == 0
    assert "finished" in told
    assert told.count("report   done") == 1


class Recorder:
    def __init__(self, run, folder, config):
        self.numbers_, self.files, self.ended = {}, [], None
        self.name, self.config = run, config

    def numbers(self, values, step):
        self.numbers_.update(values)

    def file(self, path):
        self.files.append(path.name)

    def close(self, *, ok):
        self.ended = ok


def test_experiment_trackers_get_numbers_files_and_the_outcome(work, monkeypatch):
    made = []
    module = types.ModuleType("ntkpipe.run.trackers.recorder")
    module.open_tracker = lambda *given: made.append(Recorder(*given)) or made[-1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(protocol.TRACKERS, "tensorboard", ("recorder", "json"))
    work.ok("run", "run_dir=a", *work.quick, *WORDS, "watch.reporters=[tensorboard]")
    (tracker,) = made
    assert tracker.name == "a"
    assert tracker.config["data.kind"] == "digits"
    assert tracker.ended is True
    assert {"report.html", "training_curves.png"} <= set(tracker.files)
    assert tracker.numbers_["gram/tiles"] == 5
    assert 0 < tracker.numbers_["test/ntk/ridge_0/accuracy"] <= 1


def test_a_tracker_that_is_not_installed_is_refused_before_anything_starts(work):
    if any(map(protocol.importlib.util.find_spec, ("wandb",))):
        pytest.skip("wandb is installed")
    found = work("run", "run_dir=a", *work.quick, "watch.reporters=[wandb]")
    assert found.code == 2
    assert "pip install wandb" in found.err
    assert not (work.path / "store").exists()
