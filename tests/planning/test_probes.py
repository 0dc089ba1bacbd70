"""Measuring pairs of points in a process of its own."""

from __future__ import annotations

import json

import pytest

from ntkpipe.errors import ResourceError
from ntkpipe.kernels import zoo
from ntkpipe.planning import probes
from ntkpipe.planning.probes import PairSpeed, known_disk_speed, measure_disk
from ntkpipe.planning.probes import measure_pairs as measure
from ntkpipe.storage.store import open_store


def test_what_is_measured_is_a_worker_at_work() -> None:
    found = measure(zoo.cnn_gap(1), (6, 6, 1), "float32", threads=1)
    assert 0 < found.seconds_per_pair < 0.1
    assert found.seconds_per_pair == min(found.tried.values())
    assert found.tried[str(found.pairs_per_step)] == found.seconds_per_pair
    pairs = sorted(int(pairs) for pairs in found.tried)
    assert len(pairs) == 3
    assert pairs[1] == 2 * pairs[0]
    assert pairs[2] == 2 * pairs[1]
    assert 100 << 20 < found.process_bytes < 4 << 30
    assert PairSpeed.from_json(found.to_json()) == found


def test_only_what_is_asked_for_is_tried(tmp_path, monkeypatch) -> None:
    # Nor does a file of the working directory that is called like a library take part.
    (tmp_path / "numpy.py").write_text("raise SystemExit('a script of mine')")
    monkeypatch.chdir(tmp_path)
    found = measure(zoo.cnn_vec(1), (5, 5, 1), "float64", threads=1, pairs_per_step=3)
    assert list(found.tried) == ["3"]
    assert found.pairs_per_step == 3


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(ResourceError, match="window of 9 pixels"):
        measure([{"op": "conv", "features": 1, "filter": [9, 9], "padding": "VALID"}], (4, 4, 1), "float32", threads=1)


def test_a_process_that_hangs_is_ended(monkeypatch) -> None:
    monkeypatch.setattr(probes, "_SECONDS", 0.01)
    with pytest.raises(ResourceError, match=r"grid\.pairs_per_step"):
        measure(zoo.cnn_vec(1), (5, 5, 1), "float32", threads=1)


@pytest.mark.parametrize(
    "change", [{"seconds_per_pair": 0.0}, {"seconds_per_pair": float("nan")}, {"pairs_per_step": 0}, {"other": 1}]
)
def test_damaged_measurements_are_measured_again(change: dict[str, float]) -> None:
    good = {"seconds_per_pair": 1.0, "pairs_per_step": 1, "process_bytes": 1, "tried": {}, "device": "cpu"}
    PairSpeed.from_json(json.dumps(good).encode())
    with pytest.raises(ValueError, match="not a measurement"):
        PairSpeed.from_json(json.dumps(good | change).encode())
    with pytest.raises(ValueError, match="not a measurement"):
        PairSpeed.from_json(b"{")


def test_a_disk_is_measured_once(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(probes, "_OBJECT_BYTES", 1 << 16)
    store = open_store(str(tmp_path))
    assert known_disk_speed(store) is None
    made = measure_disk(store)
    assert made.source == "measured"
    assert known_disk_speed(store) == made == measure_disk(store)
    assert [key for key in store.list() if "probe" in key] == []
    (key,) = store.list("tuning/")
    store.put(key, b"{}", overwrite=True)
    assert known_disk_speed(store) is None
