"""Estimates of errors that are rounding of float64, against predictions in 80 bits: they hold, and are not hundreds of times larger."""

from __future__ import annotations

import math

import numpy as np
import pytest

import ntkpipe as nk
from ntkpipe.errors import DataError

C = 3
# Where `longdouble` is float64 there is nothing to compare with.
pytestmark = pytest.mark.skipif(bool(np.finfo(np.longdouble).eps > 1e-18), reason="no 80-bit floats here")

SOLVERS = {
    "eigh": nk.Eigh(),
    "krylov": nk.Krylov(tolerance=1e-13),
    "cholesky": nk.Cholesky(leave_one_out=False),
    "cg": nk.ConjugateGradients(),
}


def kernel(n: int, p: int, condition: float) -> np.ndarray:
    """(n + p, n + p) with a geometric spectrum."""
    q, _ = np.linalg.qr(np.random.default_rng(n).normal(size=(n + p,) * 2))
    made = (q * np.geomspace(1.0, 1.0 / condition, n + p)) @ q.T
    return (made + made.T) / 2


def exact_means(train: np.ndarray, test: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(p, c) at t = inf without a ridge: float64 solutions refined with residuals in 80 bits."""
    wide = train.astype(np.longdouble)
    weights = np.zeros(targets.shape, np.longdouble)
    for _ in range(12):
        weights += np.linalg.solve(train, (targets - wide @ weights).astype(np.float64))
    return test.astype(np.longdouble) @ weights


@pytest.mark.parametrize("condition", [1e2, 1e7])
@pytest.mark.parametrize("n", [3, 40])
@pytest.mark.parametrize("name", SOLVERS)
def test_rounding_is_at_most_its_estimate_and_that_is_no_wild_guess(name: str, n: int, condition: float) -> None:
    whole = kernel(n, 30, condition)
    train, test, targets = whole[:n, :n], whole[n:, :n], np.random.default_rng(1).normal(size=(n, C))
    gram = nk.Gram.from_arrays(train, test, whole.diagonal()[n:], edge=32)
    found = SOLVERS[name].solve(gram.train(), targets, times=[math.inf]).predict(gram.test())
    error = np.abs(found.mean[0, 0, 0] - exact_means(train, test, targets)).astype(float)
    assert found.error_estimate is not None
    estimate = found.error_estimate[0, 0, 0]
    assert np.mean(error <= estimate) >= 0.99
    # Five standard deviations are 7.4 median errors; eigenvectors and factors are often several times better than a worst row.
    assert np.median(estimate) <= 60 * np.median(error)


@pytest.mark.parametrize("time", [1e-9, 1e-3, 1e3])
def test_tiny_times_are_off_by_what_eigenvectors_make_of_targets(time: float) -> None:
    """The filter is `s` there, and a prediction is `s T_* V V^T y`: residuals in the basis show nothing of `V V^T`."""
    n = 20
    whole = kernel(n, 30, 1e6)
    targets = 1e4 + np.random.default_rng(1).normal(size=(n, C))
    gram = nk.Gram.from_arrays(whole[:n, :n], whole[n:, :n], whole.diagonal()[n:])
    found = nk.Eigh().solve(gram.train(), targets, times=[time]).predict(gram.test())
    # A Taylor series of the filter in 80 bits: `s y - s^2 A y / 2 + ...`, at l s up to 1e3 / 60.
    s, wide = np.longdouble(time) / (n * C), whole.astype(np.longdouble)
    term = s * targets.astype(np.longdouble)
    weights = term.copy()
    for k in range(2, 200):
        term = -s * (wide[:n, :n] @ term) / k
        weights += term
    error = np.abs(found.mean[0, 0, 0] - wide[n:, :n] @ weights).astype(float)
    assert found.error_estimate is not None
    assert np.mean(error <= found.error_estimate[0, 0, 0]) >= 0.97


def test_conjugate_gradients_that_take_one_step_have_estimates_too() -> None:
    """A preconditioner of full rank leaves one step, and random vectors need more."""
    n = 80
    whole = kernel(n, 10, 1e4)
    gram = nk.Gram.from_arrays(whole[:n, :n], whole[n:, :n], whole.diagonal()[n:])
    solution = nk.ConjugateGradients(rank=n).solve(gram.train(), np.eye(n)[:, :C])
    assert solution.facts["steps"] <= 2
    assert solution.facts["estimate_passes"] > 2 * solution.facts["steps"]
    assert solution.predict(gram.test()).error_estimate is not None


def test_fewer_sampled_rows_never_lower_an_estimate_of_conjugate_gradients() -> None:
    """One row says so little of the errors of float32 tiles that every eigenvalue may be made of them. The weights have these directions
    all the same, and so do the sensitivities.
    """
    rng = np.random.default_rng(0)
    features = rng.normal(size=(34, 60)).astype(np.float32)
    gram = nk.Gram.from_features(features[:30], features[30:])
    gram.compute()
    targets, estimates = rng.normal(size=(30, C)), []
    for rows in (30, 1):
        solver = nk.ConjugateGradients(sample_rows=rows, preconditioner="none")
        found = solver.solve(gram.train(), targets, ridges=[1e-9]).predict(gram.test())
        assert found.error_estimate is not None
        estimates.append(np.median(found.error_estimate))
    assert estimates[1] > estimates[0] > 0


def test_targets_whose_squares_underflow_are_refused_and_small_ones_are_not() -> None:
    """At 1e-200 krylov was off by half of the predictions, with estimates and bounds of zero."""
    n = 20
    whole = kernel(n, 10, 1e4)
    gram = nk.Gram.from_arrays(whole[:n, :n], whole[n:, :n], whole.diagonal()[n:])
    targets = np.random.default_rng(1).normal(size=(n, C))
    targets[:, 1] = 0.0
    for solver in SOLVERS.values():
        plain = solver.solve(gram.train(), targets, times=[math.inf]).predict(gram.test())
        scale = 2.0**-390  # 4e-118: every float keeps its digits
        small = solver.solve(gram.train(), scale * targets, times=[math.inf]).predict(gram.test())
        np.testing.assert_allclose(small.mean / scale, plain.mean, rtol=1e-6, atol=1e-10)
        assert small.error_estimate is not None
        assert (small.error_estimate[..., [0, 2]] > 0).all()
        with pytest.raises(DataError, match=r"output 2 are at most .* multiply them"):
            solver.solve(gram.train(), targets * [1.0, 1.0, 1e-200])
