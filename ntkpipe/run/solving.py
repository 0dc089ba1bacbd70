"""A run's linear systems: solvers and problems from the configuration, and solutions stored in the run's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ntkpipe.errors import IncompleteError
from ntkpipe.events.event import Tell, tell_nobody
from ntkpipe.limits import free_memory
from ntkpipe.planning.memory import driver_memory
from ntkpipe.run.context import RunContext
from ntkpipe.run.run_dir import RunDir
from ntkpipe.solvers.from_config import from_config
from ntkpipe.solvers.problem import Dynamics, Problem, make_problem
from ntkpipe.solvers.refined import RefinedSolution
from ntkpipe.solvers.refining import refine, restored
from ntkpipe.solvers.saved_arrays import read_arrays, write_arrays
from ntkpipe.solvers.solution import Saved, Solution
from ntkpipe.solvers.workspace import Workspace
from ntkpipe.sources.exact_products import exact_products
from ntkpipe.tasks.executor import Executor
from ntkpipe.tasks.serial import SerialExecutor

# Names of facts in receipts of earlier versions.
_RENAMED = {"logdet_error": "logdet_standard_error"}


def workspace_of(context: RunContext, executor: Executor, tell: Tell = tell_nobody) -> Workspace:
    """Return the workspace in which a run's systems are solved."""
    config, budget = context.config, context.memory_bytes
    return Workspace(
        executor,
        context.store,
        memory_bytes=budget,
        driver_bytes=driver_memory(config, budget, free_memory()) if config.cluster.kind == "ray" else None,
        workers=context.kernels.workers,
        holder=f"ntkpipe solve of {config.run_dir}",
        tell=tell,
    )


def problem_of(context: RunContext, name: str) -> Problem:
    """Return the linear problem of one kernel of the run."""
    p, labels, initial = context.config.predict, context.data, context.initial
    targets = labels.labels().y_train[: context.kernels.training_points]
    if initial is not None:
        targets = targets - initial.train
    return make_problem(
        context.kernels.train(name),
        # With all pairs of outputs, a row is one output of a point, and there is one column of targets.
        targets if context.kernels.rows_of_point == 1 else targets.reshape(-1, 1),
        times=p.times,
        ridges=p.ridges,
        ridge_scale=p.ridge_scale,
        dynamics=Dynamics(p.dynamics, p.learning_rate, p.momentum),
        error_estimate=p.error_estimate.lower(),
        # The keys are hashes of the content.
        targets_key=labels.labels_key if initial is None else f"{labels.labels_key} less {initial.key}",
    )


def solve(context: RunContext, name: str, executor: Executor, tell: Tell) -> Solution:
    """Solve one kernel or resume an interrupted solve, and return the solution; raises the errors of `Solver.solve`."""
    return from_config(context.config).answer(problem_of(context, name), workspace_of(context, executor, tell))


def refine_all(context: RunContext, solved: Sequence[Solution], executor: Executor, tell: Tell) -> list[Solution]:
    """Return the solutions of all kernels, refined if the run is configured so.

    The refinements share the passes over tiles that are computed in float64.
    """
    steps = context.config.solver.refine
    return refine(solved, workspace_of(context, executor, tell), steps) if steps else list(solved)


def multiply_test_tiles(context: RunContext, solved: Sequence[Solution], executor: Executor, tell: Tell) -> None:
    """Multiply the float64 test tiles by the columns that all refined solutions need, in one pass.

    Predictions read the products from the store.
    """
    refined = [one for one in solved if isinstance(one, RefinedSolution)]
    if refined:
        asked = [(context.kernels.test(one.name), one.test_columns()) for one in refined]
        exact_products(asked, executor, context.store, tell)


def restore(context: RunContext, name: str, run: RunDir) -> Solution:
    """Return the solution of an earlier process, without a pass over the tiles.

    The basis is read from the store, and all other arrays from the run's folder.

    Raises:
        IncompleteError: if a part is missing or damaged; `ntkpipe solve` computes it again.
    """
    facts = {str(_RENAMED.get(key, key)): value for key, value in run.require("solve")["kernels"][name].items()}
    saved = Saved(facts, load_saved(name, run))
    workspace = workspace_of(context, SerialExecutor())
    try:
        return restored(from_config(context.config), problem_of(context, name), saved, workspace)
    except IncompleteError as error:
        raise IncompleteError(f"{error}: run ntkpipe solve run_dir={run.path}") from error


def load_saved(name: str, run: RunDir) -> dict[str, np.ndarray]:
    """Return the small arrays that `save` stored, which suffice for a report.

    Raises:
        IncompleteError: if they are missing or damaged.
    """
    saved = saved_file(name, run)
    remedy = f"ntkpipe predict run_dir={run.path}"
    if any(str(saved) in text for text in run.damaged_files("solve")):
        raise IncompleteError(f"{saved} cannot be read (its content has changed): {remedy}")
    try:
        return read_arrays(saved)
    except IncompleteError as error:
        raise IncompleteError(f"{error}: {remedy}") from error


def saved_file(name: str, run: RunDir) -> Path:
    """Return the path of the file with a kernel's arrays."""
    return run.path / "solve" / f"{name}.npz"


def save(solution: Solution, run: RunDir) -> None:
    """Store the arrays that `restore` needs, except the basis, in the run's folder."""
    target = saved_file(solution.name, run)
    target.parent.mkdir(exist_ok=True)
    arrays: dict[str, Any] = solution.arrays()
    write_arrays(target, arrays)
