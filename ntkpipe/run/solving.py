"""A run's systems: from its configuration to a solver and a problem, and what is kept of a solution in the run's folder."""

from __future__ import annotations

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
from ntkpipe.solvers.solution import Saved, Solution, read_arrays, write_arrays
from ntkpipe.solvers.workspace import Workspace
from ntkpipe.tasks.executor import Executor
from ntkpipe.tasks.serial import SerialExecutor

# Names of facts in receipts of earlier versions.
_RENAMED = {"logdet_error": "logdet_standard_error"}


def workspace_of(context: RunContext, executor: Executor, tell: Tell = tell_nobody) -> Workspace:
    """Where a run's systems are solved."""
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
    """The linear algebra of one kernel of the run."""
    p, labels, initial = context.config.predict, context.data, context.initial
    targets = labels.labels().y_train[: context.kernels.training_points]
    if initial is not None:
        targets = targets - initial.train
    return make_problem(
        context.kernels.train(name),
        # Of all pairs of outputs a row is an output of a point, and there is one column of targets.
        targets if context.kernels.rows_of_point == 1 else targets.reshape(-1, 1),
        times=p.times,
        ridges=p.ridges,
        ridge_scale=p.ridge_scale,
        dynamics=Dynamics(p.dynamics, p.learning_rate, p.momentum),
        # Hashes of their content.
        error_estimate=p.error_estimate.lower(),
        targets_key=labels.labels_key if initial is None else f"{labels.labels_key} less {initial.key}",
    )


def solve(context: RunContext, name: str, executor: Executor, tell: Tell) -> Solution:
    """Solve one kernel, or take up a solve where it stopped; raises what `Solver.solve` does."""
    return from_config(context.config).answer(problem_of(context, name), workspace_of(context, executor, tell))


def restore(context: RunContext, name: str, run: RunDir) -> Solution:
    """What an earlier process solved: the basis from the store, the rest from the run's folder; no pass is made.

    Raises:
        IncompleteError: if some of it is gone or damaged; `ntkpipe solve` makes what is missing.
    """
    facts = {str(_RENAMED.get(key, key)): value for key, value in run.require("solve")["kernels"][name].items()}
    saved = Saved(facts, load_saved(name, run))
    workspace = workspace_of(context, SerialExecutor())
    try:
        return from_config(context.config).restore(problem_of(context, name), saved, workspace)
    except IncompleteError as error:
        raise IncompleteError(f"{error}: ntkpipe solve run_dir={run.path}") from error


def load_saved(name: str, run: RunDir) -> dict[str, np.ndarray]:
    """The small arrays that `save` has kept: enough for a report, without the basis.

    Raises:
        IncompleteError: if they are gone or damaged.
    """
    saved = saved_file(name, run)
    remedy = f"ntkpipe predict run_dir={run.path}"
    if any(str(saved) in text for text in run.damaged_files("solve")):
        raise IncompleteError(f"{saved} cannot be read (it is not what was kept): {remedy}")
    try:
        return read_arrays(saved)
    except IncompleteError as error:
        raise IncompleteError(f"{error}: {remedy}") from error


def saved_file(name: str, run: RunDir) -> Path:
    """Where `save` keeps a kernel's arrays."""
    return run.path / "solve" / f"{name}.npz"


def save(solution: Solution, run: RunDir) -> None:
    """Keep in the run's folder what `restore` needs besides the basis."""
    target = saved_file(solution.name, run)
    target.parent.mkdir(exist_ok=True)
    arrays: dict[str, Any] = solution.arrays()
    write_arrays(target, arrays)
