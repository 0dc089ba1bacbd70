"""`ConjugateGradients` keeps the promises of every solver."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conformance.solvers import SolverConformance

from ntkpipe.solvers.cg import ConjugateGradients
from ntkpipe.sources.gram import Gram


class TestConjugateGradients(SolverConformance):
    solver = ConjugateGradients(residual=1e-10, tolerance=1e-7, checkpoint_every=1)
    every_time = False
    exact_leave_one_out = False


@pytest.mark.parametrize("preconditioner", ["none", "nystrom", "cholesky", "float32_factor"])
@pytest.mark.parametrize("ridges", [(0.0,), (0.0, 1e-3, 1.0), (0.0, 1e-12)])
def test_further_ridges_do_not_take_the_bound_of_the_smallest(preconditioner: str, ridges: tuple[float, ...]) -> None:
    n, p, rng = 40, 6, np.random.default_rng(0)
    x = rng.standard_normal((n + p, 3))
    whole = np.exp(-np.linalg.norm(x[:, None] - x[None], axis=2))
    y = rng.standard_normal((n, 2))
    gram = Gram.from_arrays(whole[:n, :n], whole[n:, :n], np.ones(p))
    solver = ConjugateGradients(preconditioner=preconditioner, residual=1e-10)
    found = solver.solve(gram.train(), y, times=math.inf, ridges=ridges, progress=False)
    least = float(np.linalg.eigvalsh(whole[:n, :n])[0])
    assert least / 30 < found.smallest <= least * (1 + 1e-6)
    made = found.evaluate(gram.test())
    for j, ridge in enumerate(ridges):
        error = np.abs(made.mean[0, j] - whole[n:, :n] @ np.linalg.solve(whole[:n, :n] + ridge * np.eye(n), y))
        assert (error <= made.bound[0, j] + 1e-13).all()
    assert made.bound.max() < 1e-6
    assert made.error_estimate is not None
    assert made.error_estimate.max() < 1e-6
    assert not made.warnings
