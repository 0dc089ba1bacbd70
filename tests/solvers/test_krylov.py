"""`Krylov` keeps the promises of every solver."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from conformance.solvers import SolverConformance

from ntkpipe.solvers.krylov import Krylov


class TestKrylov(SolverConformance):
    solver = Krylov(tolerance=1e-7, checkpoint_every=1)
    exact_leave_one_out = False


@pytest.mark.parametrize("basis", ["driver", "workers"])
def test_targets_of_zero_are_solved_without_a_step(basis: str, tmp_path: Path) -> None:
    solver, zero = Krylov(basis=basis), np.zeros((6, 2))
    found = solver.solve(np.eye(6), zero, times=(1.0, math.inf), ridges=(0.0, 0.1), progress=False)
    found.save(tmp_path / "zero.npz")
    for one in (found, solver.load(tmp_path / "zero.npz", np.eye(6), zero)):
        weights, shape = one.dual_weights()
        assert shape == (2, 2, 2)
        assert not weights.any()
        assert not one.budget().factor.any()
