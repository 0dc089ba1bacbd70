"""From a run's configuration to a solver."""

from __future__ import annotations

from ntkpipe.config import RunConfig
from ntkpipe.solvers.cg import ConjugateGradients
from ntkpipe.solvers.cholesky import Cholesky
from ntkpipe.solvers.eigh import Eigh
from ntkpipe.solvers.flow import Flow
from ntkpipe.solvers.krylov import Krylov
from ntkpipe.solvers.solver import Solver

SOLVERS: dict[str, type[Solver]] = {one.kind: one for one in (Krylov, ConjugateGradients, Cholesky, Eigh, Flow)}
"""By `solver.kind`."""


def from_config(config: RunConfig) -> Solver:
    """The solver that a configuration names, with its settings; those of other solvers are passed over."""
    if config.solver.kind == Flow.kind:
        return Flow.of(config.solver, config.predict.loss, config.predict.huber_delta)
    return SOLVERS[config.solver.kind].of(config.solver)
