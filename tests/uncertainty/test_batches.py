"""Stored variances belong to their points and to the settings that their values depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest

import ntkpipe as nk
from ntkpipe.data.points import Dataset
from ntkpipe.solvers.workspace import Workspace
from ntkpipe.sources import new_points
from ntkpipe.sources.gram import Gram
from ntkpipe.tasks.serial import SerialExecutor

N, P, RIDGE = 20, 4, 1e-2


def rbf(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.exp(-np.sum((a[:, None] - b[None]) ** 2, axis=2) / 2)


def posterior(train: np.ndarray, test: np.ndarray, ridge: float = RIDGE) -> np.ndarray:
    """(p, p) posterior covariance under a kernel of ones on the diagonal."""
    inverse = np.linalg.inv(rbf(train, train) + ridge * np.eye(len(train)))
    cross = rbf(test, train)
    return rbf(test, test) - cross @ inverse @ cross.T


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((N + 2 * P, 3))


@pytest.mark.parametrize("solver", [nk.Eigh(), nk.Krylov(tolerance=1e-9)], ids=lambda one: one.kind)
def test_new_points_have_their_own_variances(x: np.ndarray, solver: nk.Eigh) -> None:
    y = np.random.default_rng(1).standard_normal((N, 1))
    gram = Gram.from_arrays(rbf(x[:N], x[:N]), rbf(x[N : N + P], x[:N]), np.ones(P))
    solution = solver.solve(gram.train(), y, times=math.inf, ridges=RIDGE, ridge_scale="absolute", progress=False)
    for points in (x[N : N + P], x[N + P :]):
        rows = rbf(points, x[:N])
        found = solution.predict(rows, covariance="diagonal", diagonal=np.ones(P), progress=False)
        assert found.variance is not None
        np.testing.assert_allclose(found.variance[0, 0, 0], posterior(x[:N], points).diagonal(), atol=1e-8)


def stored(x: np.ndarray, name: str) -> tuple[Gram, np.ndarray, np.ndarray, np.ndarray]:
    """A Gram of N training points and the others, its kernels as arrays, and the places of its test points in `x[N:]`."""
    targets = np.random.default_rng(2).standard_normal((len(x), 1))
    gram = Gram(rbf, Dataset(x[:N], targets[:N], x[N:], targets[N:]), name=name, dtype="float64")
    gram.compute(progress=False)
    points = gram.test().points
    assert points is not None
    return gram, gram.train().to_numpy(), gram.test().to_numpy(), points.index


def test_batches_of_new_points_have_their_own_variances(x: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    y = np.random.default_rng(1).standard_normal((N, 1))
    gram, train, test, order = stored(x, "rbf of new points")
    inverse = np.linalg.inv(train + RIDGE * np.eye(N))
    wanted = 1.0 - np.einsum("ij,jk,ik->i", test, inverse, test)[np.argsort(order)]
    monkeypatch.setattr(new_points, "_BATCH_BYTES", 8 * N * P)  # two batches of P points
    solution = nk.Eigh().solve(gram.train(), y, times=math.inf, ridges=RIDGE, ridge_scale="absolute", progress=False)
    found = solution.predict(x[N:], covariance="diagonal", progress=False)
    assert found.variance is not None
    np.testing.assert_allclose(found.variance[0, 0, 0], wanted, atol=1e-8)


def test_a_more_accurate_factor_makes_its_own_covariances(x: np.ndarray) -> None:
    y, place = np.random.default_rng(1).standard_normal((N, 1)), Workspace()
    gram, train, test, _ = stored(x, "rbf of factors")
    own, off = gram.test().own(SerialExecutor()), []
    wanted = own - test @ np.linalg.solve(train + 1e-4 * np.eye(N), test.T)
    for precision in ("float32", "float64"):
        solver = nk.Cholesky(precision=precision)
        asked = {"times": math.inf, "ridges": 1e-4, "ridge_scale": "absolute", "workspace": place, "progress": False}
        found = solver.solve(gram.train(), y, **asked).evaluate(gram.test(), covariance="full")
        assert found.covariance is not None
        assert found.covariance.covariance is not None
        off.append(np.abs(found.covariance.covariance[0, 0] - wanted).max())
    assert off[1] < 1e-11 < 1e-9 < off[0]
