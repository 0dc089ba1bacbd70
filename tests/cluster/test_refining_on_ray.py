"""Refinement over processes of Ray: workers, and the driver, are killed while tiles are computed again, and nothing changes."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from ntkpipe.gram.products import Partial, product_task
from ntkpipe.predictions.read import read_predictions
from ntkpipe.predictions.schema import Predictions

pytestmark = [pytest.mark.ray, pytest.mark.slow]

WORDS = (
    "data=synthetic", "data.n_train=1200", "data.n_test=200", "data.shape=[6,6,2]", "kernel=fcn", "kernel.depth=6", "grid.edge=128",
    "predict.times=[inf]", "solver=krylov", "solver.refine=1", "report=false",
)  # fmt: skip


@dataclass(frozen=True)
class DiesOnce:
    """A part of a pass; the first process that takes it up ends by SIGKILL.

    Args:
        folder: where it leaves a note of that.
        key: of the part.
    """

    folder: str
    key: str

    def __call__(self, *args: Any) -> Partial:
        note = Path(self.folder) / self.key
        with contextlib.suppress(FileExistsError):
            note.touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
        return product_task(*args)


def test_workers_that_are_killed_lose_only_time(session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cloudpickle

    import ntkpipe as nk
    from ntkpipe.data.points import Dataset
    from ntkpipe.sources import exact_products as module
    from ntkpipe.sources.gram import Gram
    from ntkpipe.storage.local import LocalStore
    from ntkpipe.tasks.graph import Task

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((340, 6, 6, 2)).astype(np.float32), rng.standard_normal((340, 2))
    gram = Gram(
        nk.zoo.fcn(depth=2),
        Dataset(x[:300], y[:300], x[300:], y[300:]),
        edge=32,
        store=str(tmp_path / "gram"),
        executor=session,
    )
    gram.compute(progress=False)
    asked = [(gram.train(name), np.linspace(-1, 1, 600).reshape(300, 2)) for name in ("ntk", "nngp")]
    whole = module.exact_products(asked, session, LocalStore(tmp_path / "whole"))
    notes = tmp_path / "notes"
    notes.mkdir()
    killing = iter(range(100))

    def task(key: Any, function: Any, args: tuple[Any, ...]) -> Task:
        made = function
        if next(killing) in (2, 5):
            made = DiesOnce(str(notes), str(key))
        return Task(key, made, args)

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not see this file
    try:
        monkeypatch.setattr(module, "Task", task)
        kept = LocalStore(tmp_path / "killed")
        found = module.exact_products(asked, session, kept)
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert len(list(notes.iterdir())) == 2
    for one, other in zip(whole, found, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not [key for key in kept.list("refine/") if "product" not in key]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder of its own for Ray, to recognise its processes by; Ray's sockets want a short name."""
    temporary = Path("/tmp") / f"nr{os.getpid()}"
    temporary.mkdir()
    yield temporary
    for process in processes_of(temporary):
        with contextlib.suppress(psutil.Error):
            process.kill()
    shutil.rmtree(temporary, ignore_errors=True)


def processes_of(temporary: Path) -> list[psutil.Process]:
    """Those that were started with this folder, and their descendants."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TMPDIR") == str(temporary) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def start(folder: Path, name: str, store: str, temporary: Path) -> subprocess.Popen[str]:
    words = (*WORDS, "cluster.workers=2", f"run_dir={name}", f"store.url={store}")
    return subprocess.Popen(
        [sys.executable, "-m", "ntkpipe", "run", *words],
        cwd=folder, env={**os.environ, "TMPDIR": str(temporary)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def finished(folder: Path, name: str, store: str, temporary: Path) -> Predictions:
    process = start(folder, name, store, temporary)
    said = process.communicate()[0]
    assert process.returncode == 0, said
    assert "tiles again in float64" in said
    return read_predictions(folder / name / "predictions.zarr")


def test_a_driver_that_is_killed_goes_on_and_ends_at_the_same_bits(tmp_path: Path, place: Path) -> None:
    whole = finished(tmp_path, "whole", "undisturbed", place)
    driver = start(tmp_path, "killed", "disturbed", place)
    # Sums are kept beside the vectors as the pass goes on.
    while not [one for one in (tmp_path / "disturbed").glob("refine/*/*") if "vectors." not in str(one)]:
        assert driver.poll() is None, driver.communicate()[0]
        time.sleep(0.005)
    driver.kill()
    driver.communicate()
    while processes_of(place):  # Ray's end themselves
        time.sleep(0.1)
    found = finished(tmp_path, "killed", "disturbed", place)
    assert math.isinf(found.times[-1])
    np.testing.assert_array_equal(found.mean, whole.mean)
    np.testing.assert_array_equal(found.error_bound, whole.error_bound)
    assert found.error_estimate is not None
    assert whole.error_estimate is not None
    np.testing.assert_array_equal(found.error_estimate, whole.error_estimate)
    left = [one for one in (tmp_path / "disturbed").glob("refine/*") if not one.name.startswith("product.")]
    assert not [one for one in left if any(inner.is_file() for inner in one.rglob("*"))]
