"""Kernels and targets of any size: what floating point does not hold is refused, and nothing else depends on it."""

from __future__ import annotations

import numpy as np
import pytest

QUICK = ("cluster=serial", "data=npz", "data.path=x.npz", "predict.kernels=[ntk]", "predict.ridges=[1e-3]")


@pytest.fixture
def points(work):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(80, 6))
    f = np.sin(x[:, 0]) + x[:, 1] ** 2

    def write(scale: float = 1.0, name: str = "x.npz") -> None:
        np.savez(name, x_train=x[:60], y_train=scale * f[:60, None], x_test=x[60:], y_test=scale * f[60:, None])

    write()
    return write


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("kernel.w_std=0.05 kernel.b_std=0 kernel.depth=16", "is as small as"),
        ("kernel.w_std=12 kernel.depth=20", "is as large as"),
    ],
)
def test_a_kernel_that_float32_cannot_hold_is_refused_and_float64_holds_it(work, points, words, text):
    settings = (*QUICK, "data.labels=regression", "predict.times=[inf]", "kernel=fcn", *words.split())
    found = work("run", *settings, "run_dir=a")
    assert found.code == 2
    assert text in found.err
    assert "kernel.dtype=float64" in found.err
    assert not work.chunks()
    work.ok("run", *settings, "run_dir=b", "kernel.dtype=float64")
    predictions = work.predictions("b")
    # A relative ridge: the size of the kernel does not matter.
    assert np.abs(predictions.mean).max() > 0.1
    assert predictions.error_bound.max() < 1e-2


def test_a_kernel_that_no_dtype_holds_is_refused(work, points):
    found = work("run", *QUICK, "data.labels=regression", "kernel.w_std=0.3", "kernel.depth=300", "kernel.b_std=0",
                 "kernel.dtype=float64", "predict.times=[inf]", "run_dir=a")  # fmt: skip
    assert found.code == 2
    assert "w_std" in found.err


@pytest.mark.parametrize("solver", ["krylov", "cg"])
def test_predictions_scale_with_the_targets(work, points, solver):
    made = {}
    times = "predict.times=[100,inf]" if solver == "krylov" else "predict.times=[inf]"
    for scale in (1.0, 1e-8, 1e6):
        points(scale)
        work.ok("run", *QUICK, "data.labels=regression", f"solver={solver}", times, f"run_dir=r{scale:g}")
        made[scale] = work.predictions(f"r{scale:g}")
    for scale, found in made.items():
        np.testing.assert_allclose(found.mean / scale, made[1.0].mean, atol=1e-6)
        np.testing.assert_allclose(found.error_bound / scale, made[1.0].error_bound, rtol=0.1)


@pytest.mark.parametrize("scale", [1e-60, 1e-120])
def test_a_given_matrix_of_any_size(work, scale):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(40, 8))
    kernel = x @ x.T + 8 * np.eye(40)
    np.save("k.npy", scale * kernel[:30, :30])
    np.save("t.npy", scale * kernel[30:, :30])
    np.save("d.npy", scale * np.diagonal(kernel)[30:].copy())
    np.savez("y.npz", y_train=np.arange(30) % 2, y_test=np.arange(10) % 2)
    found = work("run", "cluster=serial", "kernel=gram", "kernel.train=k.npy", "kernel.test=t.npy",
                 "kernel.test_diagonal=d.npy", "data=labels", "data.path=y.npz", "predict.times=[inf]",
                 "predict.ridges=[0.1]", "run_dir=a")  # fmt: skip
    if scale < 1e-100:
        assert found.code == 3
        assert "multiply kernel.train and kernel.test by 1e+119" in found.err
        return
    assert found.code == 0, found.err
    y = np.eye(2)[np.arange(30) % 2] - 0.5
    ridge = 0.1 * np.mean(np.diagonal(kernel)[:30])
    exact = kernel[30:, :30] @ np.linalg.solve(kernel[:30, :30] + ridge * np.eye(30), y)
    np.testing.assert_allclose(work.predictions("a").mean[0, 0, 0], exact, atol=1e-10)


@pytest.mark.parametrize(
    ("solver", "remedy"),
    [
        ("solver=cholesky solver.precision=mixed", "solver.precision=float64"),
        ("solver=krylov solver.products=float32", "solver.products=float64"),
    ],
)
def test_float32_factors_and_products_of_what_only_float64_holds_are_refused(work, points, solver, remedy):
    found = work("run", *QUICK, "data.labels=regression", "predict.times=[inf]", "kernel.w_std=0.05", "kernel.depth=16",
                 "kernel.b_std=0", "kernel.dtype=float64", *solver.split(), "run_dir=a")  # fmt: skip
    assert found.code == 2
    assert remedy in found.err
