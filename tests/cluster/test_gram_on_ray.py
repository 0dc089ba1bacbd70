from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from ntkpipe.config import DataConfig
from ntkpipe.data.dataset import load_dataset
from ntkpipe.data.prepared import PreparedImages, write_prepared
from ntkpipe.errors import IncompleteError
from ntkpipe.gram.from_config import pair_cost
from ntkpipe.gram.plan import GramPlan
from ntkpipe.gram.stage import compute_gram
from ntkpipe.gram.task import GramJob, Output
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.spec import FORMULA_VERSION
from ntkpipe.kernels.zoo import fcn
from ntkpipe.planning.tiles import plan_gram
from ntkpipe.storage.store import open_store
from ntkpipe.tasks.faults import PoisonedRows
from ntkpipe.tasks.serial import SerialExecutor
from ntkpipe.tiles.identity import GramIdentity
from ntkpipe.tiles.layout import KERNELS
from ntkpipe.tiles.store import GramStore

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SPEC = fcn(3, w_std=2**0.5, b_std=0.1)
DATA = DataConfig(kind="synthetic", n_train=400, n_test=60, shape=(6, 6, 2))
SHAPE = (6, 6, 2)
# Three layers multiply relative rounding by a few; 72 products are summed in float32. Eight times for comfort.
BOUND = 8 * (72 + 8 * 3) * np.finfo(np.float32).eps


def prepare(folder: Path, edge: int = 32) -> tuple[GramStore, PreparedImages, GramPlan]:
    objects = open_store(str(folder))
    dataset = load_dataset(DATA)
    identity = GramIdentity(
        data=dataset.fingerprint,
        architecture=Architecture.from_spec(SPEC).fingerprint,
        formula_version=str(FORMULA_VERSION),
        dtype="float32",
        stored_dtype="float32",
        edge=edge,
        n_train=400,
        n_test=60,
        spec=SPEC,
    )
    plan = plan_gram(n_train=400, n_test=60, spec=SPEC, cost=pair_cost(SPEC, SHAPE), edge=edge, workers=2)
    return GramStore.create_or_open(objects, identity), write_prepared(dataset, objects), plan


def job(gram: GramStore, images: PreparedImages) -> GramJob:
    return GramJob((Output(gram, tuple(SPEC)),), images)


def assert_same(a: GramStore, b: GramStore) -> None:
    for block in a.blocks:
        for kernel in KERNELS:
            first, second = a.matrix(kernel, block), b.matrix(kernel, block)
            scale = a.read_diagonal("train", kernel).max()
            for tile in first.grid:
                x, y = first.read(tile.i, tile.j), second.read(tile.i, tile.j)
                assert np.abs(x - y).max() <= BOUND * scale


def ray_workers() -> list[psutil.Process]:
    """Worker processes of this test's Ray that run a task now."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[0].startswith("ray::_invoke"):
                found.append(process)
        except (psutil.Error, IndexError):
            continue
    return found


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> GramStore:
    gram, images, plan = prepare(tmp_path_factory.mktemp("serial"))
    compute_gram(SerialExecutor(), job(gram, images), plan)
    return gram


def test_workers_that_die_lose_only_time(reference: GramStore, session, tmp_path: Path, monkeypatch) -> None:
    from ntkpipe.gram import stage

    monkeypatch.setattr(stage, "_REPORT_SECONDS", 0.0)
    gram, images, plan = prepare(tmp_path)
    rng = random.Random(0)
    killed = []

    def kill_sometimes(_: object) -> None:
        if len(killed) < 2 and rng.random() < 0.3:
            for process in ray_workers()[:1]:
                process.kill()
                killed.append(process.pid)

    report = compute_gram(session, job(gram, images), plan, kill_sometimes)
    assert killed
    assert report.computed + report.reused == plan.tiles
    again = compute_gram(session, job(gram, images), plan)
    assert (again.computed, again.reused) == (0, plan.tiles)
    assert_same(reference, gram)


def test_images_that_kill_every_worker_are_named_and_cost_their_own_tiles_alone(session, tmp_path: Path) -> None:
    gram, images, plan = prepare(tmp_path, edge=200)
    poisoned = PoisonedRows(images, "train", 200)  # one row of two tiles, and a column of the test block
    told = []
    with pytest.raises(IncompleteError, match="rows 200 to 399 of train") as raised:
        compute_gram(session, job(gram, poisoned), plan, lambda p: told.append((p.retries, p.copies)))
    assert "test" in str(raised.value)
    missing = {(block, t.i, t.j) for block in gram.blocks for t in gram.missing(block)}
    assert missing == {("train", 1, 0), ("train", 1, 1), ("test", 0, 1)}
    assert told[-1][0] >= 3 * 2  # two retries each, at least
    assert compute_gram(session, job(gram, images), plan).computed == 3


DRIVER = """
import sys, pathlib, tempfile
sys.path[:0] = [{tests!r}]
import test_gram_on_ray as t
from ntkpipe.cluster.session import local_session
from ntkpipe.config import ClusterConfig
from ntkpipe.gram.stage import compute_gram
if __name__ == "__main__":
    gram, images, plan = t.prepare(pathlib.Path({folder!r}))
    with local_session(ClusterConfig(workers=2)) as executor:
        compute_gram(executor, t.job(gram, images), plan)
"""


def processes_using(folder: str) -> list[int]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(folder in part for part in process.info["cmdline"] or ()):
            found.append(process.pid)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_driver_leaves_no_process_and_its_tiles_count(reference: GramStore, tmp_path: Path, how) -> None:
    folder = tmp_path / "store"
    code = DRIVER.format(tests=str(Path(__file__).parent), folder=str(folder))
    # A folder of its own for Ray, to recognise its processes by; Ray's sockets want a short name.
    temporary = Path("/tmp") / f"nk{os.getpid()}{how}"
    temporary.mkdir()
    try:
        driver = subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(temporary)}, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while len(list(folder.glob("gram/*/receipts/train/*"))) < 3 and time.monotonic() < deadline:
            assert driver.poll() is None
            time.sleep(0.02)
        assert processes_using(str(temporary))
        driver.send_signal(how)
        driver.wait(30)
        deadline = time.monotonic() + 20
        while processes_using(str(temporary)) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not processes_using(str(temporary))
        # Ray's own folder is removed; not where Ray aborts the process on the way out, which leaves it to a later session.
        if driver.returncode == -signal.SIGINT:
            assert not list(temporary.iterdir())
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    gram, images, plan = prepare(folder)
    done = plan.tiles - sum(1 for block in gram.blocks for _ in gram.missing(block))
    assert done >= 3
    report = compute_gram(SerialExecutor(), job(gram, images), plan)
    # A worker outlives its driver by up to two seconds, and may store the tile that it was at.
    assert done <= report.reused <= done + 2 * 2
    assert_same(reference, gram)
