"""Variances of batches from Krylov spaces, eigenvectors and direct solutions: against dense formulas, within their bounds."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest

from ntkpipe.dynamics import gaussian_process as gp
from ntkpipe.dynamics import variance
from ntkpipe.dynamics.filters import make_filter
from ntkpipe.dynamics.krylov import KrylovSolution
from ntkpipe.dynamics.sampling import TestErrors
from ntkpipe.dynamics.variance import KernelRows
from ntkpipe.dynamics.variance_truncation import quadratic_truncation
from ntkpipe.linalg.eigh import Eigensystem
from ntkpipe.linalg.lanczos import block_lanczos
from ntkpipe.linalg.operator import DenseOperator

N, P, C = 60, 8, 3
TIMES = (0.0, 1.0, 30.0, 1e3, 1e5, math.inf)
RIDGES = (0.0, 1e-2)
EPS = float(np.finfo(float).eps)
NOTHING = TestErrors(0.0)


def kernels(spectrum, seed=0):
    """NNGP and NTK on training and test images together, the NTK above the NNGP by a kernel with this spectrum."""
    rng = np.random.default_rng(seed)

    def semidefinite(values):
        q = np.linalg.qr(rng.standard_normal((N + P, N + P)))[0]
        return (q * values) @ q.T

    nngp = semidefinite(np.geomspace(1e-3, 10, N + P))
    ntk = nngp + semidefinite(spectrum)
    system = Eigensystem.of(ntk[:N, :N])
    return SimpleNamespace(nngp=nngp, ntk=ntk, system=system, other=Eigensystem.of(nngp[:N, :N]))


@pytest.fixture(scope="module")
def k():
    return kernels(np.geomspace(1e-2, 30, N + P))


def rows_of(matrix, indices=None):
    indices = np.arange(N) if indices is None else indices
    return KernelRows(indices, matrix[indices], None)


def posterior(matrix, solution, f, times=TIMES, ridges=RIDGES):
    rows = rows_of(matrix[:N, :N])
    quadratic = variance.posterior_in_space(solution, f, times, ridges, rows)
    return variance.posterior_variances(np.diagonal(matrix)[N:], quadratic, NOTHING, unit=EPS)


def ensemble(k, made):
    product = k.nngp[:N, :N] @ made.weights.span()
    cross = k.nngp[:N, N:]
    return variance.ensemble_variances(
        np.diagonal(k.nngp)[N:],
        np.diagonal(k.ntk)[N:],
        made,
        made.weights.inner(product),
        made.weights.dot(cross),
        rows_of(k.nngp[:N, :N]),
        NOTHING,
        NOTHING,
        dominance=1.0,
        unit=EPS,
        trace=float(np.trace(k.nngp[:N, :N])),
        cross_norm=np.linalg.norm(cross, axis=0),
    )


def dense(k, name, f, times=TIMES, ridges=RIDGES):
    out = np.empty((len(times), len(ridges), P))
    for (i, t), (j, r) in itertools.product(enumerate(times), enumerate(ridges)):
        if name == "ntk":
            out[i, j] = gp.ntk_covariance(
                k.system, k.ntk[N:, :N], k.nngp[:N, :N], k.nngp[N:, :N], np.diagonal(k.nngp)[N:], f, t, r
            )
        else:
            matrix, system = (k.nngp, k.other) if name == "nngp" else (k.ntk, k.system)
            out[i, j] = gp.nngp_covariance(system, matrix[N:, :N], np.diagonal(matrix)[N:], f, t, r)
    return out


def space(matrix, steps):
    return KrylovSolution.from_lanczos(block_lanczos(DenseOperator(matrix[:N, :N]), matrix[:N, N:], max_steps=steps))


def complete(system, matrix):
    return KrylovSolution.from_eigensystem(system.values, system.vectors, matrix[:N, N:])


@pytest.mark.parametrize("dynamics", ["gradient_flow", "gradient_descent", "momentum"])
@pytest.mark.parametrize("name", ["nngp", "ntkgp", "ntk"])
def test_all_eigenvectors_give_the_dense_formulas(k, name, dynamics):
    f = make_filter(dynamics, N, C)
    matrix, system = (k.nngp, k.other) if name == "nngp" else (k.ntk, k.system)
    wanted = dense(k, name, f)
    whole = complete(system, matrix)
    if name == "ntk":
        found, bound, _ = ensemble(k, variance.ensemble_in_space(whole, f, TIMES, RIDGES, rows_of(k.ntk[:N, :N])))
    else:
        found, bound, _ = posterior(matrix, whole, f)
    # Rounding alone: eps times the condition, 3e4 without ridge.
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-11)
    assert (np.abs(found - wanted) <= bound).all()
    assert bound.max() < 1e-7


@pytest.mark.parametrize("dynamics", ["gradient_flow", "gradient_descent", "momentum"])
@pytest.mark.parametrize("name", ["nngp", "ntkgp", "ntk"])
def test_small_spaces_are_within_their_bounds(k, name, dynamics):
    f = make_filter(dynamics, N, C)
    matrix = k.nngp if name == "nngp" else k.ntk
    wanted = dense(k, name, f)
    worst = []
    for steps in range(1, 9):  # eight make the space complete
        if name == "ntk":
            made = variance.ensemble_in_space(space(matrix, steps), f, TIMES, RIDGES, rows_of(k.ntk[:N, :N]))
            found, bound, _ = ensemble(k, made)
        else:
            found, bound, _ = posterior(matrix, space(matrix, steps), f)
        error = np.abs(found - wanted)
        assert (error <= bound * (1 + 1e-9)).all()
        assert (found >= 0).all()
        worst.append(error.max())
    assert worst[0] > 1e-3
    assert worst[-1] < 1e-10


def test_a_quadratic_form_converges_twice_as_fast(k):
    """Of second order: the bound's exponent is twice that of the residual's."""
    f = make_filter("gradient_flow", N, C)
    for steps in (3, 4, 5):
        solution = space(k.ntk, steps)
        first = variance.ensemble_in_space(solution, f, (math.inf,), (1e-2,), rows_of(k.ntk[:N, :N])).truncation
        second = quadratic_truncation(solution, f, (math.inf,), 1e-2)
        # With a ridge, |r|^2 / ridge against |r| / (2 sqrt(ridge)) or better.
        assert (
            second <= 4.0 * (0.5 * np.linalg.norm(solution.tail @ _phi(solution), axis=0)) ** 2 / 1e-2 + 1e-15
        ).all()
        assert (first[0, 0] > 0).all()


def _phi(solution):
    return solution.targets / (solution.values + 1e-2)[:, None]


@pytest.mark.parametrize("size", [0.0, 1e-3, 1e-1])
@pytest.mark.parametrize("name", ["nngp", "ntkgp", "ntk"])
def test_inexact_solutions_are_within_their_bounds(k, name, size):
    rng = np.random.default_rng(1)
    f = make_filter("gradient_flow", N, C)
    matrix, system = (k.nngp, k.other) if name == "nngp" else (k.ntk, k.system)
    columns = matrix[:N, N:]
    weights, residuals = [], []
    for ridge in RIDGES:
        a = matrix[:N, :N] + ridge * np.eye(N)
        wrong = columns + size * rng.standard_normal(columns.shape) * np.linalg.norm(columns, axis=0) / math.sqrt(N)
        x = np.linalg.solve(a, wrong)
        weights.append(x)
        residuals.append(columns - a @ x)
    arguments = (np.stack(weights), np.stack(residuals), columns, RIDGES, rows_of(matrix[:N, :N]))
    extremes = {"smallest": float(system.values[0]), "largest": float(system.values[-1])}
    if name == "ntk":
        found, bound, _ = ensemble(k, variance.ensemble_of_solution(*arguments, **extremes))
    else:
        quadratic = variance.posterior_of_solution(*arguments, **extremes)
        found, bound, _ = variance.posterior_variances(np.diagonal(matrix)[N:], quadratic, NOTHING, unit=EPS)
    wanted = dense(k, name, f, (math.inf,))
    assert (np.abs(found - wanted) <= bound).all()
    if size == 0:
        np.testing.assert_allclose(found, wanted, atol=1e-11)


@pytest.mark.parametrize("name", ["nngp", "ntk"])
def test_rounded_tiles_are_within_the_bound(k, name):
    """float32 tiles, measured on a third of the rows and half of the columns."""
    f = make_filter("gradient_flow", N, C)
    matrix = k.nngp if name == "nngp" else k.ntk
    stored = {which: getattr(k, which).astype(np.float32).astype(float) for which in ("nngp", "ntk")}
    indices = np.arange(0, N, 3)
    columns = np.arange(0, N, 2)
    rows = {w: KernelRows(indices, stored[w][indices, :N], getattr(k, w)[indices, :N]) for w in stored}
    cross = {
        w: TestErrors.of_columns((stored[w] - getattr(k, w))[N:, columns], np.diagonal(getattr(k, w))[N:], N)
        for w in stored
    }
    s = stored["nngp" if name == "nngp" else "ntk"]
    solution = KrylovSolution.from_lanczos(block_lanczos(DenseOperator(s[:N, :N]), s[:N, N:], max_steps=60))
    if name == "nngp":
        quadratic = variance.posterior_in_space(solution, f, TIMES, RIDGES, rows["nngp"])
        found, bound, _ = variance.posterior_variances(np.diagonal(matrix)[N:], quadratic, cross["nngp"], unit=EPS)
    else:
        made = variance.ensemble_in_space(solution, f, TIMES, RIDGES, rows["ntk"])
        found, bound, _ = variance.ensemble_variances(
            np.diagonal(k.nngp)[N:],
            np.diagonal(k.ntk)[N:],
            made,
            made.weights.inner(stored["nngp"][:N, :N] @ made.weights.span()),
            made.weights.dot(stored["nngp"][:N, N:]),
            rows["nngp"],
            cross["ntk"],
            cross["nngp"],
            dominance=1.0,
            unit=EPS,
            trace=float(np.trace(k.nngp[:N, :N])),
            cross_norm=np.linalg.norm(k.nngp[:N, N:], axis=0),
        )
    error = np.abs(found - dense(k, name, f))
    assert error.max() > 1e-9
    assert (error <= bound).all()


def test_diverging_steps_have_no_bound(k):
    largest = float(k.other.values[-1])
    f = make_filter("gradient_descent", N, C, learning_rate=2.5 * N * C / largest)
    _, bound, _ = posterior(k.nngp, space(k.nngp, 3), f, (10.0,), (0.0,))
    assert np.isinf(bound).all()
