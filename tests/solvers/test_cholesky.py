"""`Cholesky` keeps the promises of every solver."""

from __future__ import annotations

from conformance.solvers import SolverConformance

from ntkpipe.solvers.cholesky import Cholesky


class TestCholesky(SolverConformance):
    solver = Cholesky(factor_edge=16)
    every_time = False
