"""Every solver over processes of Ray: what it gives in one process."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conformance.solvers import RIDGES, SPECTRA, Problem

from ntkpipe.linalg.factor.workspace import release
from ntkpipe.solvers.cg import ConjugateGradients
from ntkpipe.solvers.cholesky import Cholesky
from ntkpipe.solvers.eigh import Eigh
from ntkpipe.solvers.krylov import Krylov
from ntkpipe.solvers.solver import Solver
from ntkpipe.solvers.workspace import Workspace
from ntkpipe.storage.local import LocalStore

pytestmark = pytest.mark.ray


@pytest.mark.parametrize(
    "solver",
    [
        Krylov(tolerance=1e-7),
        ConjugateGradients(residual=1e-10, tolerance=1e-7),
        Cholesky(factor_edge=16),
        Eigh(),
    ],
    ids=lambda solver: solver.kind,
)
def test_processes_solve_as_one_does(session, tmp_path, solver: Solver) -> None:
    problem = Problem(SPECTRA["decaying"])
    settings = {"times": (math.inf,), "ridges": RIDGES}
    made = []
    try:
        for workspace in (Workspace(), Workspace(session, LocalStore(tmp_path), memory_bytes=1 << 28)):
            kernel, test = problem.gram.train("gram"), problem.gram.test("gram")
            solution = solver.solve(kernel, problem.targets, workspace=workspace, **settings)
            made.append(solution.evaluate(test, covariance="diagonal", batch=4))
    finally:
        release()
    one, many = made
    np.testing.assert_allclose(many.mean, one.mean, rtol=0, atol=1e-9)
    for r, ridge in enumerate(RIDGES):
        assert (np.abs(many.mean[0, r] - problem.means(ridge)) <= many.bound[0, r] + 1e-12).all()
    assert many.covariance is not None
    error = np.abs(many.covariance.variance[0] - [problem.variances(ridge) for ridge in RIDGES])
    assert (error <= many.covariance.bound[0] + 1e-12).all()
