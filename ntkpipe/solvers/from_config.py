"""Creates the solver of a run's configuration."""

from __future__ import annotations

from ntkpipe.config import RunConfig
from ntkpipe.solvers.cg import ConjugateGradients
from ntkpipe.solvers.cholesky import Cholesky
from ntkpipe.solvers.eigh import Eigh
from ntkpipe.solvers.flow import Flow
from ntkpipe.solvers.krylov import Krylov
from ntkpipe.solvers.solver import Solver

SOLVERS: dict[str, type[Solver]] = {one.kind: one for one in (Krylov, ConjugateGradients, Cholesky, Eigh, Flow)}
"""The solvers, by `solver.kind`."""


def from_config(config: RunConfig) -> Solver:
    """The configured solver with its settings. Settings of other solvers are ignored."""
    if config.solver.kind == Flow.kind:
        return Flow.of(config.solver, config.predict.loss, config.predict.huber_delta)
    return SOLVERS[config.solver.kind].of(config.solver)
