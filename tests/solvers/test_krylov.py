"""`Krylov` keeps the promises of every solver."""

from __future__ import annotations

from conformance.solvers import SolverConformance

from ntkpipe.solvers.krylov import Krylov


class TestKrylov(SolverConformance):
    solver = Krylov(tolerance=1e-7, checkpoint_every=1)
    exact_leave_one_out = False
