"""Leases in a folder that several nodes share, some of whose locks do not reach other nodes."""

from __future__ import annotations

import json
import os
import threading
import time

import pytest

from ntkpipe.errors import ConfigError, HeldError
from ntkpipe.storage.lease import BEAT_VARIABLE, new_note
from ntkpipe.storage.local import LocalStore


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv(BEAT_VARIABLE, "0.1")
    return LocalStore(tmp_path)


def write_note(store, **changes):
    """As another holder on another node would, whose lock this one does not see."""
    path = os.path.join(store.url, ".leases/run.lock")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        json.dump({**new_note("far away"), "host": "other-node", "boot": "another kernel", **changes}, file)
    return path


def test_a_fresh_note_of_another_node_is_respected(store):
    write_note(store)
    with pytest.raises(HeldError, match=r"on other-node since .*far away"), store.lease("run", holder="x"):
        pass


def test_after_three_missed_beats_another_nodes_lease_is_taken_over(store):
    path = write_note(store)
    then = os.stat(path).st_mtime - 1.5  # three beats and the second that some file systems round to
    os.utime(path, (then, then))
    with store.lease("run", holder="x") as lease:
        assert not lease.lost


def test_a_holder_on_another_node_is_seen_by_its_beat(store):
    path = write_note(store)
    assert store.holder("run") is None  # it does not touch its note any more
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        assert "far away" in store.holder("run")
    finally:
        stop.set()
        thread.join()


def test_a_clock_that_is_wrong_by_hours_changes_nothing(store, monkeypatch):
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 7200)
    write_note(store, since="1999-01-01T00:00:00+00:00")
    with pytest.raises(HeldError), store.lease("run", holder="x"):
        pass


def test_a_beating_holder_stays_fresh(store):
    path = os.path.join(store.url, ".leases/run.lock")
    with store.lease("run", holder="x") as lease:
        then = os.stat(path).st_mtime - 100
        os.utime(path, (then, then))
        deadline = time.monotonic() + 20
        while os.stat(path).st_mtime < then + 50 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert os.stat(path).st_mtime > then + 50
        assert not lease.lost
    assert os.path.getsize(path) == 0


def test_a_holder_that_lost_its_lease_notices_and_leaves_the_other_ones_note(store):
    with store.lease("run", holder="x") as lease:
        path = write_note(store)
        deadline = time.monotonic() + 20
        while not lease.lost and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(HeldError, match=r"taken over by process .* on other-node"):
            lease.check()
    assert os.path.getsize(path) > 0


@pytest.mark.parametrize("bad", ["soon", "0", "-1", "nan"])
def test_an_impossible_beat_is_refused(store, monkeypatch, bad):
    monkeypatch.setenv(BEAT_VARIABLE, bad)
    with pytest.raises(ConfigError, match=f"{BEAT_VARIABLE}='{bad}'"), store.lease("run", holder="x"):
        pass
