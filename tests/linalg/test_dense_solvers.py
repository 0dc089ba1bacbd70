from __future__ import annotations

import numpy as np
import pytest

from ntkpipe.errors import NumericalError
from ntkpipe.linalg import cholesky as cholesky_module
from ntkpipe.linalg.cholesky import cholesky
from ntkpipe.linalg.eigh import eigh
from ntkpipe.linalg.operator import DenseOperator
from ntkpipe.linalg.solution import Reason

EPS = np.finfo(np.float64).eps


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_eigh_of_prescribed_spectra(spectrum, make_matrix, order, dtype, overwrite):
    n = 60
    a = np.asarray(make_matrix(spectrum(n)), dtype=dtype, order=order)
    kept = a.copy()
    result = eigh(a, overwrite=overwrite)
    rounding = (EPS if dtype == "float64" else np.finfo(np.float32).eps) * n * np.abs(kept).max() * n
    np.testing.assert_allclose(result.values, np.sort(spectrum(n)), rtol=0, atol=rounding)
    rebuilt = (result.vectors * result.values) @ result.vectors.T
    np.testing.assert_allclose(rebuilt, kept, rtol=0, atol=20 * n * EPS * np.linalg.norm(kept, 2))
    if not overwrite:
        np.testing.assert_array_equal(a, kept)


def test_eigh_refuses_non_finite_entries():
    a = np.eye(4)
    a[2, 1] = a[1, 2] = np.nan
    with pytest.raises(NumericalError, match="ntkpipe verify"):
        eigh(a)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    ("dtype", "condition"), [("float64", 1e10), ("float64", 10), ("float32", 1e4), ("float32", 10)]
)
def test_cholesky_solves_to_float64_with_refinement(make_matrix, make_labels, order, dtype, condition):
    n = 80
    exact = make_matrix(np.logspace(-np.log10(condition), 0, n)).astype(dtype).astype(np.float64)
    a = np.asarray(exact, dtype=dtype, order=order)
    b = make_labels(n, 10)
    factor = cholesky(a, ridge=1e-3)
    np.testing.assert_array_equal(a, exact)
    shifted = exact + 1e-3 * np.eye(n)
    solution = factor.solve(b, DenseOperator(exact))
    assert solution.reason is Reason.CONVERGED
    assert solution.residual <= 4 * n * EPS * max(1, min(condition, 1e3))  # eps |A| |x| / |b|
    x = np.linalg.solve(shifted, b)
    np.testing.assert_allclose(solution.value, x, rtol=0, atol=20 * n * EPS * min(condition, 1e3) * np.abs(x).max())
    assert factor.smallest_eigenvalue() == pytest.approx(np.linalg.eigvalsh(shifted)[0], rel=1e-2)
    accuracy = float(np.finfo(dtype).eps) * n * min(condition, 1e3)
    assert factor.logdet == pytest.approx(np.linalg.slogdet(shifted)[1], abs=accuracy * n)
    half = factor.half_solve(b)
    np.testing.assert_allclose(half.T @ half, b.T @ x, rtol=0, atol=accuracy * np.abs(b.T @ x).max())


@pytest.mark.parametrize("order", ["C", "F"])
def test_overwriting_works_in_place(make_matrix, order):
    a = np.asarray(make_matrix(np.linspace(1, 2, 50)), order=order)
    assert np.shares_memory(cholesky(a, overwrite=True).factor, a)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("dense_limit", [2000, 0])
@pytest.mark.parametrize("smallest", [-1e-3, -1.0, 0.0])
def test_an_indefinite_matrix_names_the_pivot_and_a_ridge_that_does(
    make_matrix, order, dtype, dense_limit, smallest, monkeypatch
):
    monkeypatch.setattr(cholesky_module, "_DENSE_EIGENVALUE", dense_limit)
    n = 60
    # Zero is met as a duplicated image: two equal rows and columns, whose second pivot is exactly zero or rounding.
    a = (
        make_matrix(np.linspace(1, 2, n))
        if smallest == 0
        else make_matrix(np.append(smallest, np.linspace(1, 2, n - 1)))
    )
    if smallest == 0:
        a[1], a[:, 1], a[1, 1] = a[0], a[:, 0], a[0, 0]
        a[0, 1] = a[1, 0] = a[0, 0] * (1 + 1e-4)
    with pytest.raises(NumericalError, match=r"pivot \d+ of 60 .* predict\.ridges=\[") as caught:
        cholesky(np.asarray(a, dtype=dtype, order=order))
    ridge = float(str(caught.value).split("A ridge of ")[1].split()[0])
    true = -np.linalg.eigvalsh(a)[0]
    assert true * 0.9 <= ridge <= 2 * true + 1e-2
    cholesky(np.asarray(a, dtype=dtype, order=order), ridge=1.1 * ridge)


def test_cholesky_refuses_what_is_no_matrix():
    with pytest.raises(ValueError, match="square"):
        cholesky(np.ones((3, 2)))
    with pytest.raises(ValueError, match="float32 or float64"):
        cholesky(np.ones((3, 3), dtype=int))
    with pytest.raises(NumericalError, match="ntkpipe verify"):
        cholesky(np.full((3, 3), np.nan))


def test_refinement_with_another_matrix_says_that_it_stagnates(make_matrix, make_labels):
    a = make_matrix(np.linspace(1, 2, 40))
    solution = cholesky(a).solve(make_labels(40, 3), DenseOperator(-a))
    assert solution.reason is Reason.STAGNATED
    assert not solution.reason.ok
    assert "ridge" in str(solution.reason)
