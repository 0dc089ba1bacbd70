"""`Eigh` keeps the promises of every solver."""

from __future__ import annotations

from conformance.solvers import SolverConformance

from ntkpipe.solvers.eigh import Eigh


class TestEigh(SolverConformance):
    solver = Eigh()
