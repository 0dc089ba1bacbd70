"""The solver's stage: for each kernel a basis, an eigensystem or a solution, kept in the store by what determines it."""

from __future__ import annotations

from typing import Any

from ntkpipe.run.context import Inputs
from ntkpipe.solvers.cg import solve_cg
from ntkpipe.solvers.cholesky import solve_cholesky
from ntkpipe.solvers.eigh import solve_eigh
from ntkpipe.solvers.krylov import solve_krylov
from ntkpipe.solvers.problem import Solved, Tell, make_problem, solve_key
from ntkpipe.tasks.executor import Executor


def solve(inputs: Inputs, name: str, executor: Executor, tell: Tell) -> Solved:
    """Solve one kernel, or take up a solve where it stopped.

    Raises:
        IncompleteError: if krylov or cg runs out of steps; what it has is kept.
        NumericalError: for an indefinite matrix (Cholesky, cg).
    """
    problem = make_problem(inputs, name)
    kind = inputs.config.solver.kind
    if kind in ("krylov", "cg"):
        # Two runs that add to one basis would each undo the other's steps.
        key = solve_key(inputs, inputs.gram, problem.source, inputs.config.solver.products)
        with inputs.store.lease(f"{kind}/{key}", holder=f"ntkpipe solve of {inputs.config.run_dir}") as lease:

            def checked(*line: Any, **facts: Any) -> None:
                lease.check()  # another run has taken over, and adds to the basis now
                tell(*line, **facts)

            return (solve_krylov if kind == "krylov" else solve_cg)(inputs, problem, key, executor, checked)
    return (solve_eigh if kind == "eigh" else solve_cholesky)(inputs, problem, executor, tell)
