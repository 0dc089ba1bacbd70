"""`Eigh` keeps the promises of every solver."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conformance.solvers import SolverConformance

from ntkpipe.data.points import Dataset
from ntkpipe.solvers.eigh import Eigh
from ntkpipe.sources.gram import Gram


class TestEigh(SolverConformance):
    solver = Eigh()


def rbf(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.exp(-np.sum((a[:, None] - b[None]) ** 2, axis=2) / 2)


@pytest.mark.parametrize("ridge", [0.0, 1e-2])
def test_equal_points_leave_the_leave_one_out_errors_of_others_defined(ridge: float) -> None:
    n, rng = 24, np.random.default_rng(0)
    x, y = rng.standard_normal((n + 1, 4)), rng.standard_normal((n, 2))
    x[[15, 20, 12]] = x[[3, 3, 7]]
    gram = Gram(rbf, Dataset(x[:n], y, x[n:], np.zeros((1, 2))), name="rbf of rows", dtype="float64")
    gram.compute(progress=False)
    kernel = gram.train().to_numpy()
    solution = Eigh().solve(gram.train(), y, times=math.inf, ridges=ridge, ridge_scale="absolute", progress=False)
    assert solution.problem.kernel.copies.count == 3
    found = solution.leave_one_out()
    for i in range(n):
        others = np.delete(np.arange(n), i)
        inverse = np.linalg.pinv(kernel[np.ix_(others, others)] + ridge * np.eye(n - 1), rcond=1e-10)
        wanted = y[i] - kernel[i, others] @ (inverse @ y[others])
        np.testing.assert_allclose(found.residuals[0, i], wanted, atol=1e-10)
