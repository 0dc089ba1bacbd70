"""Kernels whose smallest eigenvalues rounding hides: named for what they are, and never shown as right without a mark."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ntkpipe.predictions.schema import Predictions

COMMON = ("cluster=serial", "data=npz", "data.path=x.npz", "predict.kernels=[nngp]", "predict.times=[inf]")


def write(x_train, y_train, x_test, y_test):
    np.savez("x.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)


def entry(work, run):
    return json.loads((work.path / run / "metrics.json").read_text())["entries"][0]


@pytest.fixture
def clouds():
    """300 points of three overlapping classes in 20 dimensions; 100 more to predict."""
    rng = np.random.default_rng(0)
    y = np.arange(400) % 3
    x = rng.normal(size=(400, 20)) + 0.8 * np.eye(3)[y] @ rng.normal(size=(3, 20))
    return x[:300], y[:300], x[300:], y[300:]


@pytest.mark.parametrize("solver", ["krylov", "eigh"])
def test_a_rank_deficient_kernel_in_float32_is_as_good_as_in_float64_and_marked(work, clouds, solver):
    write(*clouds)
    for dtype in ("float32", "float64"):
        found = work.ok(
            "run", *COMMON, "kernel=linear", f"solver={solver}", f"kernel.dtype={dtype}", f"run_dir={dtype}"
        )
    narrow, wide = (work.predictions(dtype) for dtype in ("float32", "float64"))
    np.testing.assert_allclose(narrow.mean, wide.mean, atol=1e-4)
    for one in (narrow, wide):
        assert (one.bound_kind == "minimum_norm").all()
        assert np.isinf(one.error_bound).all()
    assert entry(work, "float32")["doubt"] == "minimum_norm"
    assert entry(work, "float32")["certain"] == 0
    assert "directions have eigenvalues below" in found.err
    assert "duplicated" not in found.err
    work.ok("verify", "run_dir=float32", "repair=false", "tiles=1", "rows=8")


SOLVERS = ("krylov", "eigh", "cg", "cholesky")


def predicted(work, name, *words):
    """All stages but the report; what the first that failed says, or the predictions."""
    for stage in ("gram", "solve", "predict"):
        found = work(stage, f"run_dir={name}", *words)
        if found.code:
            return found
    return work.predictions(name)


@pytest.mark.parametrize("ridge", ["0", "1e-7", "1e-3"])
def test_nearly_equal_points_with_other_labels_are_within_their_bound(work, clouds, ridge):
    x, y, x_test, y_test = clouds
    x[-1], y[-1] = x[0], (y[0] + 1) % 3
    x[-1, 5] += 1e-4
    write(x, y, x_test, y_test)
    settings = (*COMMON, "data.standardize=none", f"predict.ridges=[{ridge}]")
    exact = predicted(work, "exact", *settings, "kernel.dtype=float64", "solver=eigh")
    for solver in SOLVERS:
        quick = predicted(work, solver, *settings, f"solver={solver}")
        if not isinstance(
            quick, Predictions
        ):  # an indefinite matrix, or a residual that is not to be had: refused with a remedy
            assert solver in ("cg", "cholesky")
            assert ridge != "1e-3"
            assert "kernel.dtype=float64" in quick.err or "ridge" in quick.err
            continue
        assert (np.abs(exact.mean - quick.mean) <= quick.error_bound + exact.error_bound).all(), solver
        if ridge == "1e-3":
            assert (quick.bound_kind == "rigorous").all()
            assert quick.error_bound.max() < 1.0


def test_equal_points_with_other_labels_keep_their_bounds_useful(work, clouds):
    x, y, x_test, y_test = clouds
    x[-3:], y[-3:] = x[:3], (y[:3] + 1) % 3
    write(x, y, x_test, y_test)
    exact = {
        ridge: predicted(
            work, f"exact{ridge}", *COMMON, f"predict.ridges=[{ridge}]", "kernel.dtype=float64", "solver=eigh"
        )
        for ridge in ("0", "1e-6")
    }
    for solver in SOLVERS:
        ridge = "1e-6" if solver == "cholesky" else "0"
        found = work.ok("run", *COMMON, f"predict.ridges=[{ridge}]", f"solver={solver}", f"run_dir={solver}")
        assert "3 training points exactly equal another one" in found.err
        quick, wanted = work.predictions(solver), exact[ridge]
        assert (np.abs(wanted.mean - quick.mean) <= quick.error_bound + wanted.error_bound).all()
        assert quick.error_bound.max() < 0.1
        assert wanted.error_bound.max() < 1e-7
        assert not (quick.bound_kind == "minimum_norm").any()
        assert entry(work, solver)["doubt"] is None


@pytest.mark.parametrize("spectrum", ["deficient", "geometric"])
@pytest.mark.parametrize("solver", ["krylov", "eigh"])
def test_given_matrices_that_are_singular_to_rounding_are_named(work, spectrum, solver):
    rng = np.random.default_rng(1)
    q, _ = np.linalg.qr(rng.normal(size=(60, 60)))
    values = np.where(np.arange(60) < 30, 1.0, 0.0) if spectrum == "deficient" else 10.0 ** -np.arange(60.0)
    kernel = (q * values) @ q.T
    np.save("k.npy", kernel[:50, :50])
    np.save("t.npy", kernel[50:, :50])
    np.save("d.npy", np.diagonal(kernel)[50:].copy())
    np.savez("y.npz", y_train=rng.normal(size=(50, 1)), y_test=rng.normal(size=(10, 1)))
    work.ok("run", "cluster=serial", "kernel=gram", "kernel.train=k.npy", "kernel.test=t.npy",
            "kernel.test_diagonal=d.npy", "data=labels", "data.path=y.npz", "data.labels=regression",
            f"solver={solver}", "predict.times=[10,inf]", "run_dir=a")  # fmt: skip
    found = work.predictions("a")
    assert found.bound_kind[0, :, 0].tolist() == ["rigorous", "minimum_norm"]
    assert np.isinf(found.error_bound[0, 1]).all()
    assert np.isfinite(found.error_bound[0, 0]).all()
