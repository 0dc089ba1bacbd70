"""What a factor answers, in every precision, against dense formulas on prescribed spectra."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from tiled_factors import EPS, factored, tiled, where

from ntkpipe.linalg import direct
from ntkpipe.linalg.direct import solve_direct
from ntkpipe.linalg.factor import posterior
from ntkpipe.linalg.factor.factorise import IndefiniteError
from ntkpipe.linalg.factor.refine import refine, residual_floor
from ntkpipe.linalg.factor.solve import forward, forward_in_place
from ntkpipe.linalg.operator import DenseOperator
from ntkpipe.linalg.solution import Reason

pytestmark = pytest.mark.usefixtures("no_workspace_left")


def factor(a, *, edge=29, **settings):
    return factored(a, stored=32, edge=edge, **settings).factor


def solve(a, b, precision, *, ridge=0.0, edge=29, **settings):
    return solve_direct(
        tiled(a, 32), DenseOperator(a), b, precision=precision, ridge=ridge, edge=edge, **where(**settings)
    )


def backward_error(a, b, x):
    return np.linalg.norm(b - a @ x, axis=0) / (np.linalg.norm(a, 2) * np.linalg.norm(x, axis=0))


@pytest.mark.parametrize("condition", [1e0, 1e2, 1e4, 1e6, 1e7, 1e8, 1e10, 1e12, 1e14])
def test_mixed_is_as_accurate_as_float64_at_any_condition(make_matrix, make_labels, condition):
    n = 100
    a, b = make_matrix(np.logspace(-np.log10(condition), 0, n)), make_labels(n, 5)
    exact, mixed = solve(a, b, "float64"), solve(a, b, "mixed")
    # Theory: a stable solver's backward error is c n eps, whatever the condition (Higham 2002, theorem 10.4).
    for found in (exact, mixed):
        assert found.reason is Reason.CONVERGED
        assert backward_error(a, b, found.value).max() <= 4 * n * EPS["float64"]
        true = np.linalg.norm(b - a @ found.value, axis=0) / np.linalg.norm(b, axis=0)
        assert found.residual == pytest.approx(true.max(), rel=0.5, abs=1e-15)
    assert exact.method == "refinement"
    assert exact.run.factor.dtype == "float64"
    if condition <= 1e6:
        assert (mixed.method, mixed.run.factor.dtype, mixed.story) == ("refinement", "float32", "")
    elif condition >= 1e12:
        assert mixed.run.factor.dtype == "float64"
        assert "cg with it ended" in mixed.story
    elif condition >= 1e8:
        assert mixed.method == "cg" or mixed.run.factor.dtype == "float64"
        assert mixed.story


@pytest.mark.parametrize("precision", ["float64", "mixed", "float32"])
def test_prescribed_spectra_with_a_ridge(spectrum, make_matrix, make_labels, precision):
    n, ridge = 90, 1e-3
    a, b = make_matrix(spectrum(n)), make_labels(n, 4)
    shifted = a + ridge * np.eye(n)
    found = solve(a, b, precision, ridge=ridge)
    unit = EPS["float32" if precision == "float32" else "float64"]
    assert found.reason is Reason.CONVERGED
    assert backward_error(shifted, b, found.value).max() <= 4 * n * unit


def test_float32_says_that_rounding_made_it_indefinite_and_mixed_goes_on(make_matrix, make_labels):
    n = 100
    a, b = make_matrix(np.logspace(-11, 0, n)), make_labels(n, 3)
    with pytest.raises(IndefiniteError, match="float32"):
        solve(a, b, "float32")
    found = solve(a, b, "mixed")
    assert found.reason is Reason.CONVERGED
    assert "more on the diagonal" in found.story
    # Rounding explains the residual of a float32 answer at condition 3e7, but it is none.
    found = solve(make_matrix(np.logspace(-7.5, 0, n)), b, "float32")
    assert found.reason is Reason.STAGNATED
    assert found.residual > 1e-2
    # A matrix that is indefinite indeed is refused in every precision.
    for precision in direct.PRECISIONS:
        with pytest.raises(IndefiniteError, match="a ridge of at least"):
            solve(a - 0.1 * np.eye(n), b, precision)
    with pytest.raises(ValueError, match=r"solver\.precision"):
        solve(a, b, "half")


def test_refinement_with_another_matrix_says_that_it_stagnates(make_matrix, make_labels):
    a = make_matrix(np.linspace(1, 2, 40))
    solution = refine(factor(a), make_labels(40, 3), DenseOperator(-a))
    assert solution.reason is Reason.STAGNATED
    assert solution.residual > residual_floor(solution.value, make_labels(40, 3), DenseOperator(a), 0.0)


def test_columns_of_any_size_and_zero(make_matrix):
    n = 70
    a = make_matrix(np.logspace(-4, 0, n))
    b = np.random.default_rng(0).normal(size=(n, 5)) * np.array([1e-300, 1e-40, 0.0, 1e30, 1e300])
    made = factor(a, dtype="float32")
    x = made.apply_inverse(b)
    want = np.linalg.solve(a, b)
    assert np.isfinite(x).all()
    assert not x[:, 2].any()
    kept = [0, 1, 3, 4]
    with np.errstate(over="ignore"):
        error = np.abs(x - want)[:, kept].max(axis=0) / np.abs(want)[:, kept].max(axis=0)
    assert error.max() <= n * EPS["float32"] * 1e4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("condition", [1e1, 1e3, 1e5])
@pytest.mark.parametrize("workers", [1, 3])
def test_likelihood_leave_one_out_and_eigenvalue(make_matrix, make_labels, dtype, condition, workers):
    n, ridge = 90, 1e-4
    a, y = make_matrix(np.logspace(-np.log10(condition), 0, n)), make_labels(n, 3)
    shifted = a + ridge * np.eye(n)
    made, operator = factor(a, ridge=ridge, dtype=dtype, workers=workers), DenseOperator(a)
    weights = refine(made, y, operator).value
    kappa = np.linalg.cond(shifted)

    logdet = posterior.log_determinant(made, operator)
    exact = np.linalg.slogdet(shifted)[1]
    if dtype == "float64":
        assert logdet.standard_error == 0
        assert abs(logdet.value - exact) <= n * n * EPS[dtype] * kappa
    else:
        # 16 probes: beyond five standard errors once in two million.
        assert abs(logdet.value - exact) <= 5 * logdet.standard_error
        assert logdet.standard_error <= n * EPS[dtype] * kappa
    likelihood = posterior.log_marginal_likelihood(y, weights, exact)
    want = [scipy.stats.multivariate_normal(np.zeros(n), shifted).logpdf(y[:, k]) for k in range(3)]
    np.testing.assert_allclose(likelihood, want, rtol=1e-9)

    out = posterior.leave_one_out(made, operator, weights)
    slack = max(out.error, n * EPS["float64"] * kappa)
    assert slack <= n * EPS[dtype] * kappa
    for i in (0, 41, n - 1):
        rest = np.delete(np.arange(n), i)
        k = a[i, rest]
        inner = np.linalg.solve(shifted[np.ix_(rest, rest)], np.column_stack([y[rest], k]))
        mean, variance = k @ inner[:, :3], shifted[i, i] - k @ inner[:, 3]
        np.testing.assert_allclose(out.variances[i], variance, rtol=5 * slack)
        np.testing.assert_allclose(
            y[i] - out.residuals[i], mean, rtol=0, atol=5 * slack * np.abs(out.residuals[i]).max()
        )
    assert made.smallest_eigenvalue() == pytest.approx(np.linalg.eigvalsh(shifted)[0], rel=1e-2)
    b = make_labels(n, 4)
    with made.opened() as space:
        half = forward(space, b).astype(np.float64)
    reference = b.T @ np.linalg.solve(shifted, b)
    np.testing.assert_allclose(half.T @ half, reference, rtol=0, atol=n * EPS[dtype] * kappa * np.abs(reference).max())


def test_the_error_of_a_float32_inverse_is_unknown_without_the_matrix(make_matrix):
    values, error = posterior.inverse_diagonal(factor(make_matrix(np.linspace(1, 2, 40)), dtype="float32"))
    assert math.isinf(error)
    assert len(values) == 40


def test_the_inverse_is_made_once(make_matrix, monkeypatch):
    a = make_matrix(np.linspace(1, 2, 40))
    made = factor(a, dtype="float32")
    first = posterior.inverse_diagonal(made)
    monkeypatch.setattr(posterior, "_inverse_diagonal", None)
    values, error = posterior.inverse_diagonal(made, DenseOperator(a))
    np.testing.assert_array_equal(values, first[0])
    assert 0 < error < 1e-4
    assert posterior.inverse_diagonal(made)[1] == error


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 45), st.integers(0, 3), st.floats(0, 2))
def test_little_memory_only_takes_longer(n, edge, k, share):
    x = np.random.default_rng(n).normal(size=(n, 12))
    nngp = x @ x.T / 12 + 0.05 * np.eye(n)
    a = nngp * (1 + 0.5 * nngp) + nngp  # like an NTK
    b = np.random.default_rng(1).normal(size=(n, k))
    wide = factor(a, edge=edge)
    least = wide.job.tiles.identity.edge**2 * 8 * 7 + 32**2 * 8 * 2
    narrow = factor(a, edge=edge, memory=least + int(share * 8 * n * n))
    np.testing.assert_array_equal(narrow.apply_inverse(b), wide.apply_inverse(b))
    np.testing.assert_array_equal(posterior.inverse_diagonal(narrow)[0] > 0, np.ones(n, bool))
    np.testing.assert_allclose(posterior.inverse_diagonal(narrow)[0], np.diag(np.linalg.inv(a)), rtol=1e-10)


def test_a_half_solve_from_a_later_row_of_tiles(make_matrix):
    n = 70
    a = make_matrix(np.linspace(1, 10, n))
    made = factor(a, edge=20)
    b = np.zeros((n, 3))
    b[40:] = np.random.default_rng(0).normal(size=(30, 3))
    with made.opened() as space:
        here = b[40:].T.copy()
        forward_in_place(space, here, first=2)
        np.testing.assert_array_equal(here.T, forward(space, b)[40:])
