"""Approximations from prescribed spectra: what they keep, what they leave out, and where they stop."""

from __future__ import annotations

import float32_factors
import numpy as np
import pytest

from ntkpipe.errors import NumericalError, ResourceError
from ntkpipe.linalg.cg import block_cg
from ntkpipe.linalg.operator import DenseOperator
from ntkpipe.linalg.preconditioner import Identity, Preconditioner, nystrom, pivoted_cholesky

EPS = float(np.finfo(np.float64).eps)
LOW_RANK = {"nystrom": nystrom, "cholesky": pivoted_cholesky}


def inverse(preconditioner: Preconditioner, n: int) -> np.ndarray:
    return preconditioner.apply(np.eye(n))


@pytest.mark.parametrize("kind", LOW_RANK)
@pytest.mark.parametrize("ridge", [0.0, 1e-3])
def test_a_low_rank_preconditioner_is_what_its_formula_says(make_matrix, kind, ridge):
    n = 100
    found = LOW_RANK[kind](DenseOperator(make_matrix(np.logspace(-6, 0, n))), ridge=ridge, rank=30)
    u, values = found.vectors, found.values
    np.testing.assert_allclose(u.T @ u, np.eye(len(values)), rtol=0, atol=100 * EPS)
    assert (np.diff(values) <= 0).all()
    assert 0 < found.tail <= values[-1]
    m = np.linalg.inv(inverse(found.at(ridge), n))
    expected = (u * ((values + ridge) / (found.tail + ridge) - 1)) @ u.T + np.eye(n)
    np.testing.assert_allclose(m, expected, rtol=0, atol=1e3 * n * EPS * np.abs(expected).max())
    assert np.linalg.eigvalsh(m)[0] >= 1 - 1e-9


@pytest.mark.parametrize("kind", LOW_RANK)
def test_an_approximation_lies_below_the_matrix(make_matrix, kind):
    """Both are Schur complements of a positive semi-definite matrix: what they leave out is positive semi-definite."""
    n = 100
    a = make_matrix(np.logspace(-4, 0, n))
    found = LOW_RANK[kind](DenseOperator(a), ridge=0.0, rank=25)
    left = np.linalg.eigvalsh(a - (found.vectors * found.values) @ found.vectors.T)
    assert left[0] >= -1e3 * n * EPS
    assert left[-1] < 0.9


@pytest.mark.parametrize("kind", LOW_RANK)
def test_adaptive_rank_stops_near_the_ridge(make_matrix, kind):
    n = 1000
    values = 0.97 ** np.arange(n)
    operator = DenseOperator(make_matrix(values))
    coarse, fine = (LOW_RANK[kind](operator, ridge=ridge) for ridge in (1e-2, 1e-7))
    assert len(coarse.values) < len(fine.values) <= max(n // 4, 256)
    # What the ridge hides is not looked for; what it does not is, up to the largest rank. (The last eigenvalues of an
    # approximation are too small by a factor of a few.)
    assert (values > 4e-1).sum() < len(coarse.values) <= 4 * (values > 1e-3).sum()
    assert fine.columns >= n // 4


@pytest.mark.parametrize("kind", LOW_RANK)
def test_exact_low_rank_and_ranks_beyond_n(make_matrix, kind):
    n = 60
    a = make_matrix(np.append(np.zeros(n - 7), np.linspace(1, 2, 7)))
    found = LOW_RANK[kind](DenseOperator(a), ridge=1e-3, rank=10 * n)
    assert len(found.values) == 7
    np.testing.assert_allclose(found.values, np.linspace(2, 1, 7), rtol=1e-10)
    full = LOW_RANK[kind](DenseOperator(make_matrix(np.linspace(1, 2, n))), ridge=0.0, rank=10 * n)
    assert len(full.values) == n
    assert full.tail == full.values[-1]
    empty = LOW_RANK[kind](DenseOperator(np.zeros((n, n))), ridge=0.0)
    assert isinstance(empty.at(0.0), Identity)


@pytest.mark.parametrize("kind", [*LOW_RANK, "float32_factor"])
def test_passes_are_saved_threefold_where_eigenvalues_decay(make_matrix, make_labels, kind):
    n, ridge = 600, 1e-6
    a, b = make_matrix(0.93 ** np.arange(n) + 1e-9), make_labels(n, 10)
    operator = DenseOperator(a)
    made = float32_factors.make(operator, ridge) if kind == "float32_factor" else None
    made = made or LOW_RANK[kind](operator, ridge=ridge).at(ridge)
    plain = block_cg(operator, b, ridge=ridge)
    fast = block_cg(operator, b, ridge=ridge, preconditioner=made)
    assert fast.reason.ok
    assert 3 * fast.iterations <= plain.iterations
    assert made.rank
    assert "flops" in made.cost()


@pytest.mark.parametrize("kind", LOW_RANK)
def test_a_float32_matrix_that_rounding_made_indefinite(make_matrix, make_labels, kind):
    n = 200
    a = make_matrix(np.logspace(-12, 0, n)).astype(np.float32)
    assert np.linalg.eigvalsh(a.astype(np.float64))[0] < 0
    operator = DenseOperator(a)
    found = LOW_RANK[kind](operator, ridge=1e-5)
    solution = block_cg(operator, make_labels(n, 3), ridge=1e-5, preconditioner=found.at(1e-5))
    assert solution.reason.ok


def test_a_whole_factor_tells_the_smallest_eigenvalue(make_matrix, make_labels):
    """All pivots of a small matrix are taken: its eigenvalues are known, and a step or two estimate the smallest from below."""
    n = 120
    operator, b = DenseOperator(make_matrix(np.logspace(-6, 0, n))), make_labels(n, 4)
    found = pivoted_cholesky(operator, ridge=0.0)
    assert len(found.values) == n
    solution = block_cg(operator, b, preconditioner=found.at(0.0))
    assert solution.reason.ok
    assert solution.iterations <= 3
    assert found.values[-1] == pytest.approx(1e-6, rel=1e-6)
    assert 1e-6 / 17 <= solution.smallest <= 1.01e-6  # lowered by 17 at most


def test_the_sketch_is_the_same_every_time(make_matrix):
    operator = DenseOperator(make_matrix(np.logspace(-3, 0, 80)))
    for make in LOW_RANK.values():
        one, two = make(operator, ridge=0.0, rank=9), make(operator, ridge=0.0, rank=9)
        np.testing.assert_array_equal(one.vectors, two.vectors)


def test_the_float32_factor_inverts_to_float32(make_matrix):
    n, condition = 90, 1e3
    a = make_matrix(np.logspace(-3, 0, n))
    made = float32_factors.make(DenseOperator(a), 0.0)
    error = np.linalg.norm(inverse(made, n) @ a - np.eye(n), 2)
    assert error <= 4 * n * np.finfo(np.float32).eps * condition
    assert made.smallest <= 1e-3 * 1.01
    # An indefinite rounding is lifted, not refused; a matrix that is indefinite indeed is.
    raised = float32_factors.make(DenseOperator(make_matrix(np.logspace(-12, 0, n))), 0.0)
    assert 0 < raised.raised <= 1e-3
    with pytest.raises(NumericalError, match=r"solver\.preconditioner=none"):
        float32_factors.make(DenseOperator(-np.eye(n)), 0.0)
    with pytest.raises(ResourceError, match=r"cluster\.memory_gib"):
        float32_factors.make(DenseOperator(a), 0.0, memory_bytes=10_000)


def test_non_finite_entries_are_named():
    broken = DenseOperator(np.full((9, 9), np.nan))
    for make in (*LOW_RANK.values(), float32_factors.make):
        with pytest.raises(NumericalError, match="ntkpipe verify"):
            make(broken, ridge=1.0)
