"""`ConjugateGradients` keeps the promises of every solver."""

from __future__ import annotations

from conformance.solvers import SolverConformance

from ntkpipe.solvers.cg import ConjugateGradients


class TestConjugateGradients(SolverConformance):
    solver = ConjugateGradients(residual=1e-10, tolerance=1e-7, checkpoint_every=1)
    every_time = False
    exact_leave_one_out = False
