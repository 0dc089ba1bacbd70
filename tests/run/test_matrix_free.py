"""`store.gram=recompute`: the same predictions, and no tile anywhere; and what `auto` chooses."""

from __future__ import annotations

import numpy as np
import pytest

from ntkpipe.gram.recomputed import RecomputedTiles
from ntkpipe.planning.probes import DiskSpeed
from ntkpipe.storage.store import open_store

FREE = "store.gram=recompute"


def _predict(work, name, *words):
    """All stages but the report, whose figures take most of the time."""
    for stage in ("gram", "solve", "predict"):
        found = work.ok(stage, f"run_dir={name}", *words)
    return found


@pytest.mark.parametrize(
    "words",
    [
        ("solver=krylov", "predict.times=[100,inf]"),
        ("solver=cg", "predict.times=[inf]", "predict.kernels=[ntk]"),
        ("solver=eigh", "predict.times=[10,inf]", "augment=hflip", "predict.covariance=diagonal"),
        ("solver=cholesky", "predict.times=[inf]", "predict.ridges=[1e-3,1e-2]", "predict.kernels=[nngp]"),
    ],
)
def test_predictions_are_those_of_stored_tiles(work, words):
    words = (*words, *work.quick)
    _predict(work, "a", FREE, *words)
    assert work.chunks() == []
    assert work.receipt("a", "gram")["tiles"] == 0
    _predict(work, "b", "store.url=other", *words)
    mine, stored = work.predictions("a"), work.predictions("b")
    np.testing.assert_array_equal(mine.mean, stored.mean)
    np.testing.assert_array_equal(mine.error_bound, stored.error_bound)
    if stored.variance is not None:
        np.testing.assert_array_equal(mine.variance, stored.variance)


def test_a_run_is_looked_after_as_any_other(work):
    assert "recomputed on every read" in work.ok("gram", "run_dir=a", FREE, *work.quick).err
    assert "only diagonals" in work("status", "run_dir=a").out
    work.ok("run", "run_dir=a")
    assert "nothing to do" in work.ok("run", "run_dir=a").err
    assert "this run stores no tiles" in work.ok("verify", "run_dir=a").out
    work.ok("report", "run_dir=a")
    # Another run that stores tiles finds the diagonals, and what was solved: the kernel is the same.
    found = work.ok("run", "run_dir=b", *work.quick)
    assert work.receipt("b", "gram")["computed"] == work.receipt("b", "gram")["tiles"] > 0
    assert found.code == 0
    # A damaged diagonal is computed again.
    path = work.objects("gram/*/tiles.zarr/diagonal/train/ntk/c/0")[0]
    path.write_bytes(path.read_bytes()[:-7] + b"damaged")
    assert "repaired" in work.ok("verify", "run_dir=a").out


def test_memory_for_nothing_computes_every_tile_on_every_pass(work, monkeypatch):
    read: list[str] = []
    plain = RecomputedTiles.read

    def watched(self, i, j):
        read.append(self.block)
        return plain(self, i, j)

    monkeypatch.setattr(RecomputedTiles, "read", watched)
    words = ("solver=krylov", "predict.kernels=[ntk]", "predict.times=[10]", FREE, *work.quick)
    counts = []
    for name, words_of in (("a", ()), ("b", ("cluster.memory_gib=0.75", "store.url=other"))):
        read.clear()
        _predict(work, name, *words, *words_of)
        counts.append(read.count("train"))
    assert counts[0] < counts[1]
    np.testing.assert_array_equal(work.predictions("a").mean, work.predictions("b").mean)


def _plan(work, *words):
    return work.ok("plan", *work.quick, *words).out


def test_the_plan_compares_both_ways(work, monkeypatch):
    text = _plan(work)
    assert "tiles       stored (store.gram=stored)" in text
    assert "recomputed:" in text
    assert "recomputed on every read" in _plan(work, FREE)
    fast, slow = DiskSpeed(1e10, 1e10, "measured"), DiskSpeed(1e4, 1e3, "measured")
    monkeypatch.setattr("ntkpipe.planning.surroundings._CACHE_SHARE", 0.0)  # every byte is waited for
    for speed, choice in ((fast, "stored"), (slow, "recomputed")):
        monkeypatch.setattr("ntkpipe.planning.surroundings.known_disk_speed", lambda *_, speed=speed: speed)
        assert f"tiles       {choice} (store.gram=auto" in _plan(work, "store.gram=auto")


def test_auto_recomputes_where_the_disk_lacks_the_space_and_stays_with_it(work, monkeypatch):
    speed = DiskSpeed(1e10, 1e10, "measured")
    monkeypatch.setattr("ntkpipe.planning.surroundings.known_disk_speed", lambda *_: speed)
    store = type(open_store("store"))
    with monkeypatch.context() as full:
        full.setattr(store, "free_bytes", lambda self: 20_000)
        assert "choose another store.url" in work("gram", "run_dir=x", *work.quick).err
        work.ok("gram", "run_dir=a", "store.gram=auto", *work.quick)
    _predict(work, "a")
    assert work.chunks() == []
    work.ok("gram", "run_dir=b", "store.gram=auto", *work.quick)
    assert len(work.chunks()) > 0
