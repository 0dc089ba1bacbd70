"""`solver=krylov` with a basis that does not fit: against a dense solver, killed and resumed, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from ntkpipe.errors import RequeueError
from ntkpipe.linalg.recurrence import Recurrence

WORDS = ("cluster=serial", "data=npz", "data.path=images.npz", "grid.edge=64")
ASKED = ("predict.times=[1e3,1e5,inf]", "predict.ridges=[0,1e-2]")
SMALL = ("solver.basis_gib=1e-4", "solver.tolerance=1e-6")  # 67 vectors of 200 images


@pytest.fixture
def images(real_images):
    return real_images(200, 40)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_restarted_equals_dense_within_its_bound(work, images, dtype):
    work.ok("run", "run_dir=dense", *WORDS, *ASKED, "solver=eigh", "kernel.dtype=float64")
    work.ok("run", "run_dir=a", *WORDS, *ASKED, *SMALL, f"kernel.dtype={dtype}")
    found, dense = work.predictions("a"), work.predictions("dense")
    error = np.abs(found.mean - dense.mean)
    assert (error <= found.error_bound + dense.error_bound).all()
    if dtype == "float64":
        assert error.max() < 1e-6
        assert found.error_bound.max() < 1e-4
    for name in ("ntk", "nngp"):
        facts = found.attributes["solver"][name]
        assert facts["restarted"]
        assert facts["steps"] > 10
        assert facts["true_residual"] < 1e-4
    assert (work.path / "a" / "report" / "report.html").exists()


@pytest.mark.slow
def test_killed_it_goes_on_and_a_later_stage_finds_its_weights(work, images, monkeypatch):
    words = (*WORDS, *ASKED, *SMALL, "kernel.dtype=float64", "predict.kernels=[ntk]", "solver.checkpoint_every=3")
    work.ok("run", "run_dir=a", "store.url=other", *words)
    step, made, kill = Recurrence.advance, [], [9]

    def advance(self):
        made.append(self.steps + 1)
        if len(made) == kill[0]:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Recurrence, "advance", advance)
    for _ in range(3):
        made.clear()
        with pytest.raises((KeyboardInterrupt, AssertionError)):
            work.ok("run", "run_dir=b", *words)
    kill[0], before = 0, made[-1]
    made.clear()
    work.ok("run", "run_dir=b", *words)
    assert before - 3 <= made[0] <= before
    found, undisturbed = work.predictions("b"), work.predictions("a")
    np.testing.assert_allclose(found.mean, undisturbed.mean, rtol=0, atol=1e-12)
    made.clear()
    work.ok("predict", "run_dir=b")
    np.testing.assert_allclose(work.predictions("b").mean, found.mean, rtol=0, atol=1e-14)
    assert not made


def test_times_must_be_known_beforehand(work, images):
    found = work("run", "run_dir=a", *WORDS, "predict.kernels=[ntk]", *SMALL)
    assert found.code != 0
    assert "predict.times=[" in found.err
    assert "solver.basis_gib" in found.err


POOLED = (
    "solver.basis=workers",
    "solver.basis_gib=1e-5",
    "cluster.workers=2",
)  # 6 vectors in memory, the others on disk


def test_a_basis_over_the_workers_equals_that_of_the_driver(work, images):
    words = (*WORDS, *ASKED, "kernel.dtype=float64", "solver.tolerance=1e-6", "solver.stop=bound", "cluster.workers=2")
    work.ok("run", "run_dir=a", "store.url=other", *words)
    work.ok("run", "run_dir=b", *words, *POOLED)
    found, driver = work.predictions("b"), work.predictions("a")
    error = np.abs(found.mean - driver.mean)
    assert (error <= found.error_bound + driver.error_bound).all()
    assert error.max() < 1e-8
    assert found.attributes["solver"]["ntk"]["steps"] == driver.attributes["solver"]["ntk"]["steps"]
    assert "damaged" not in work.ok("verify", "run_dir=b").out
    work.ok("predict", "run_dir=b")
    refused = work("run", "run_dir=c", *WORDS, *POOLED)
    assert refused.code == 2
    assert "set predict.times" in refused.err


def test_a_basis_over_the_workers_says_what_it_stops_by(work, images):
    said = work.ok("run", "run_dir=a", *WORDS, *ASKED, "predict.kernels=[ntk]", *POOLED)
    assert "ntk: stops by the bound on errors, because the basis is on the workers" in said.out + said.err


@pytest.mark.ray
@pytest.mark.slow
def test_a_basis_over_the_workers_of_ray(work, images):
    words = (
        "data=npz",
        "data.path=images.npz",
        "grid.edge=64",
        *ASKED,
        "kernel.dtype=float64",
        "predict.kernels=[nngp]",
    )
    work.ok("run", "run_dir=a", *words, "cluster=serial", "cluster.workers=2")
    work.ok("run", "run_dir=b", *words, *POOLED)
    np.testing.assert_allclose(work.predictions("b").mean, work.predictions("a").mean, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_told_to_stop_it_keeps_whole_steps(work, images, monkeypatch):
    words = (*WORDS, *ASKED, *SMALL, "kernel.dtype=float64", "predict.kernels=[ntk]", "solver.checkpoint_every=100")
    words += ("predict.error_estimate=false",)  # its random vectors have steps of their own
    step, made, stop = Recurrence.advance, [], [17]  # beyond the first restart, far from any checkpoint

    def advance(self):
        if len(made) == stop[0]:
            raise RequeueError("stopped by a test")
        made.append(self.steps + 1)
        return step(self)

    monkeypatch.setattr(Recurrence, "advance", advance)
    assert work("run", "run_dir=b", *words).code == RequeueError.exit_code
    stop[0] = -1
    work.ok("run", "run_dir=b", *words)
    assert made == list(range(1, len(made) + 1))  # no step twice
