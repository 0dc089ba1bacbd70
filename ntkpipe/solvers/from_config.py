"""From a run's configuration to a solver."""

from __future__ import annotations

from ntkpipe.config import SolverConfig
from ntkpipe.solvers.cg import ConjugateGradients
from ntkpipe.solvers.cholesky import Cholesky
from ntkpipe.solvers.eigh import Eigh
from ntkpipe.solvers.krylov import Krylov
from ntkpipe.solvers.solver import Solver

SOLVERS: dict[str, type[Solver]] = {one.kind: one for one in (Krylov, ConjugateGradients, Cholesky, Eigh)}
"""By `solver.kind`."""


def from_config(config: SolverConfig) -> Solver:
    """The solver that a configuration names, with its settings; those of other solvers are passed over."""
    return SOLVERS[config.kind].of(config)
