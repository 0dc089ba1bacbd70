"""Kill a run at any moment, start the same command: only what has no receipt is computed, and the result is the same."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from ntkpipe.storage.local import LocalStore
from ntkpipe.storage.store import MissingObjectError
from ntkpipe.tiles.receipt import Receipt
from ntkpipe.tiles.store import GramStore

WORDS = ("run", "run_dir=a", "cluster=serial", "data=digits", "data.train_size=600", "grid.edge=64")
MORE = ("predict.times=[10,1e4,inf]", "solver.checkpoint_every=3")


@pytest.mark.slow
def test_kill_the_driver_at_random_moments_of_every_stage(work):
    # The undisturbed run, in a store of its own, timed by stage.
    undisturbed = work.start(*WORDS, *MORE, "store.url=store0", "run_dir=b")
    output = undisturbed.communicate()[0]
    assert undisturbed.returncode == 0, output
    log = [json.loads(line) for line in (work.path / "b" / "log.jsonl").read_text().splitlines()]
    assert [e["stage"] for e in log if e["event"] == "stage finished"] == ["data", "gram", "solve", "predict", "report"]
    expected = work.predictions("b")

    # Seeded moments, in order, spread over the part of a run in which there is something to lose.
    moments = random.Random(0)
    kills, killed_in = 4, []
    for k in range(kills):
        process = work.start(*WORDS, *MORE)
        if k < 1:  # as tiles are written
            count = len(work.receipts()) + moments.randrange(5, 25)
            work.wait_for(lambda count=count: len(work.receipts()) >= count, process)
        elif k < 2:  # as bases grow
            count = len(work.objects("krylov/**/*")) + moments.randrange(1, 3)
            work.wait_for(lambda count=count: len(work.objects("krylov/**/*")) >= count, process)
        elif k < 3:  # after the solve
            solved = work.path / "a" / "stages" / "solve.json"
            work.wait_for(solved.exists, process)
            time.sleep(moments.uniform(0, 0.05))
        else:
            predicted = work.path / "a" / "stages" / "predict.json"
            work.wait_for(predicted.exists, process)
            time.sleep(moments.uniform(0, 0.2))
        work.kill(process)
        stages = [
            s for s in ("data", "gram", "solve", "predict", "report") if (work.path / "a" / f"stages/{s}.json").exists()
        ]
        killed_in.append(len(stages))
    assert killed_in == sorted(killed_in)
    assert killed_in[0] == 1
    assert killed_in[-1] >= 4

    written = {p: p.stat().st_mtime_ns for p in work.receipts()}
    last = work.start(*WORDS, *MORE)
    output = last.communicate()[0]
    assert last.returncode == 0, output
    assert {p: p.stat().st_mtime_ns for p in work.receipts()} == written
    found = work.predictions("a")
    np.testing.assert_array_equal(found.mean, expected.mean)
    np.testing.assert_allclose(found.error_bound, expected.error_bound, rtol=1e-6)
    # All tiles are there once, and litter does not count.
    assert len(work.receipts("train")) == 10 * 11 // 2


def receipts_in(store: Path) -> dict[tuple[str, int, int], Receipt]:
    """Every receipt of the one Gram store, whether it is packed or not."""
    objects = LocalStore(store)
    found: dict[tuple[str, int, int], Receipt] = {}
    for name in objects.folders("gram"):
        try:
            gram = GramStore.open(objects, name)
        except MissingObjectError:
            continue
        for label in gram.blocks:
            ledger = gram.ledger(label)
            done = ledger.done()
            addresses = [t for t in gram.layout.addresses(label) if done[gram.layout.rank(label, *t)]]
            found |= {(label, i, j): r for i, j, r in ledger.read(addresses) if isinstance(r, Receipt)}
    return found


@pytest.mark.slow
def test_kill_at_uniformly_random_moments_of_gram(work):
    """Receipts that a killed run has left are never written again: nothing is computed twice."""
    words = ("gram", "run_dir=a", "cluster=serial", "data=digits", "grid.edge=32")
    moments, seen = random.Random(1), {}
    for _ in range(3):
        process = work.start(*words)
        before, there = len(seen), len(work.chunks("ntk"))
        # With the third new chunk at the latest, the receipt of a first new tile is there.
        work.wait_for(lambda there=there: len(work.chunks("ntk")) > there + 2, process)
        time.sleep(moments.uniform(0.0, 0.3))
        work.kill(process)
        now = receipts_in(work.path / "store")
        assert seen.items() <= now.items()
        assert len(now) > before
        seen = now
    chunks = {p: p.read_bytes() for p in work.chunks()}
    work.ok(*words)
    now = receipts_in(work.path / "store")
    assert seen.items() <= now.items()  # seconds and all: none was written anew
    assert all(p.read_bytes() == data for p, data in chunks.items())
    receipt = work.receipt("a", "gram")
    assert receipt["computed"] + receipt["reused"] == receipt["tiles"] == len(now)
    assert work.objects("gram/*/segments/train/*.json")
    assert work("verify", "run_dir=a", "repair=false").code == 0


def ray_workers(driver: int) -> list[psutil.Process]:
    """Worker processes below a driver."""
    below = psutil.Process(driver).children(recursive=True)
    return [p for p in below if " ".join(_command(p)).startswith("ray::_invoke")]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.ray
@pytest.mark.slow
def test_ray_gives_the_same_and_outlives_a_worker(work):
    """A worker killed in the middle of the tiles: the run goes on and its result is that of one process, to rounding."""
    words = (
        "run",
        "data=digits",
        "data.train_size=800",
        "grid.edge=32",
        "kernel.dtype=float64",
        "predict.times=[100,inf]",
    )
    words = (*words, "predict.kernels=[ntk]", "solver.tolerance=1e-6")
    process = work.start(*words, "run_dir=a", "cluster.workers=2", "cluster.memory_gib=2.5")
    try:
        work.wait_for(lambda: len(work.receipts()) > 5, process)
        work.wait_for(lambda: ray_workers(process.pid), process)
        os.kill(ray_workers(process.pid)[0].pid, 9)
        output = process.communicate()[0]
    finally:
        if process.poll() is None:
            work.kill(process)
    assert process.returncode == 0, output
    assert work.receipt("a", "gram")["tiles"] == len(work.receipts("train")) + len(work.receipts("test"))
    work.ok(*words, "run_dir=b", "cluster=serial", "store.url=other")
    here, there = work.predictions("b"), work.predictions("a")
    np.testing.assert_allclose(there.mean, here.mean, rtol=0, atol=1e-9)
