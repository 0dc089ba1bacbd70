"""`solver=cg` from end to end: against a dense solver, killed and resumed, over damaged tiles, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from ntkpipe.linalg.cg_recurrence import CgRecurrence

WORDS = ("cluster=serial", "data=npz", "data.path=images.npz", "grid.edge=64", "predict.times=[inf]")
EXACT = ("kernel.dtype=float64", "predict.ridges=[0,1e-3]")


@pytest.fixture
def images(real_images):
    return real_images(200, 40)


@pytest.mark.slow
def test_equals_dense_within_its_bound(work, images):
    work.ok("run", "run_dir=dense", *WORDS, *EXACT, "solver=eigh")
    dense = work.predictions("dense")
    # Relative residuals of 1e-12 of kernels of condition 1e4: weights agree to 1e-8, and predictions likewise.
    for kind in ("nystrom", "cholesky", "float32_factor", "none"):
        words = (*WORDS, *EXACT, "solver=cg", f"solver.preconditioner={kind}", "solver.residual=1e-12")
        work.ok("run", f"run_dir={kind}", *words)
        found = work.predictions(kind)
        error = np.abs(found.mean - dense.mean)
        assert error.max() < 1e-8
        assert (error <= found.error_bound + dense.error_bound).all()
        assert found.error_bound.max() < 1e-4
        assert found.bound_kind[:, 0, 0].tolist() == ["estimate", "estimate"]  # no ridge: a Ritz value
        facts = found.attributes["solver"]
        for name in ("ntk", "nngp"):
            assert facts[name]["true_residual"] <= 1e-12
            ratio = facts[name]["smallest"] / dense.attributes["solver"][name]["smallest"]
            assert 0.1 < ratio < 1.5
        assert (work.path / kind / "report" / "report.html").exists()
    assert work.receipt("none", "gram")["computed"] == 0  # another solver, the same tiles


@pytest.mark.parametrize("products", ["float32", "float64"])
def test_float32_tiles_are_within_the_bound(work, images, products):
    work.ok("run", "run_dir=dense", *WORDS, *EXACT, "solver=eigh")
    words = (*WORDS, EXACT[1], "solver=cg", f"solver.products={products}", "solver.residual=1e-11", "solver.rank=50")
    dense, facts = work.predictions("dense"), {}
    for stop in ("estimate", "bound"):  # what is stricter goes on from what is there
        work.ok("run", f"run_dir={stop}", *words, f"solver.stop={stop}")
        found = work.predictions(stop)
        assert (np.abs(found.mean - dense.mean) <= found.error_bound + dense.error_bound).all()
        # The 99% that are stated, of predictions that share the errors of a kernel: all but a few.
        assert np.mean(np.abs(found.mean - dense.mean) <= found.error_estimate) >= 0.97
        facts[stop] = found.attributes["solver"]["nngp"]
    assert facts["bound"]["true_residual"] <= 1e-11 < facts["estimate"]["true_residual"] < 1e-4
    assert facts["estimate"]["steps"] < facts["bound"]["steps"]
    strict, settled = (work.predictions(stop).error_estimate for stop in ("bound", "estimate"))
    assert np.median(settled / strict) < 1.1  # a third of the other errors adds five percent to their root mean square


@pytest.mark.slow
@pytest.mark.parametrize("at", [2, 11])
def test_killed_it_goes_on_from_its_checkpoint(work, images, monkeypatch, at):
    words = (*WORDS, *EXACT, "solver=cg", "solver.rank=8", "solver.checkpoint_every=3", "predict.kernels=[ntk]")
    work.ok("run", "run_dir=a", "store.url=other", *words)
    work.ok("gram", "run_dir=b", *words)
    step, made = CgRecurrence.advance, []

    def advance(self, tolerance):
        made.append(self.steps + 1)
        if len(made) == at:
            raise KeyboardInterrupt
        return step(self, tolerance)

    monkeypatch.setattr(CgRecurrence, "advance", advance)
    assert work("run", "run_dir=b", *words).code == 130  # as an interrupted process ends
    assert len(made) == at
    made[:] = [0] * at
    work.ok("run", "run_dir=b", *words)
    assert made[at] == (at - 1) // 3 * 3 + 1
    found, undisturbed = work.predictions("b"), work.predictions("a")
    np.testing.assert_allclose(found.mean, undisturbed.mean, rtol=0, atol=1e-12)
    # The same again solves nothing; a smaller residual goes on.
    made[:] = [0] * at
    work.ok("run", "run_dir=c", *words)
    assert made == [0] * at
    work.ok("run", "run_dir=d", *words, "solver.residual=1e-11")
    assert made[at] > 5


def test_a_damaged_tile_is_computed_again(work, images):
    words = (*WORDS, "solver=cg", "predict.kernels=[ntk]")
    work.ok("run", "run_dir=a", *words)
    for path in work.objects("cg/**/*"):
        path.unlink()
    chunk = work.chunks("ntk", "train")[3]
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 64
    chunk.write_bytes(bytes(data))
    found = work.ok("run", "run_dir=b", *words)
    assert "is damaged or missing and will be recomputed" in found.out + found.err
    np.testing.assert_array_equal(work.predictions("b").mean, work.predictions("a").mean)


def test_what_cannot_be_solved_says_why(work, images):
    words = ("run", *WORDS, "solver=cg", "predict.kernels=[ntk]")
    found = work(*words, "run_dir=a", "solver.max_steps=2", "solver.preconditioner=none")
    assert found.code == 4
    assert "larger solver.max_steps" in found.err
    found = work(*words, "run_dir=b", "solver.residual=1e-19", "solver.stop=bound")
    assert found.code == 7
    assert "accept the residual that was reached" in found.err


def test_the_plan_says_what_it_takes(work, images):
    for kind, text in (
        ("cholesky", "rank at most 200"),
        ("nystrom", "rank at most 50"),
        ("float32_factor", "a float32 factor"),
        ("none", "no precond"),
    ):
        found = work.ok("plan", *WORDS, "solver=cg", f"solver.preconditioner={kind}")
        assert "solver      cg: a pass takes" in found.out
        assert text in found.out
