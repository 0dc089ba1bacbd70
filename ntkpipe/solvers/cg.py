"""Preconditioned block conjugate gradients on stored tiles, from one checkpoint to the next: t = inf only."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntkpipe.config import SolverConfig
from ntkpipe.dynamics.gains import final_gain
from ntkpipe.errors import IncompleteError, NumericalError
from ntkpipe.gram.plan import human_seconds
from ntkpipe.limits import free_memory
from ntkpipe.linalg.cg import CgSolution, block_cg
from ntkpipe.linalg.cg_recurrence import CgStep
from ntkpipe.linalg.checkpoint import StoreCheckpoint
from ntkpipe.linalg.copies import AnyOperator, merged
from ntkpipe.linalg.lanczos import largest_eigenvalue
from ntkpipe.linalg.operator import tile_operator
from ntkpipe.linalg.preconditioner import (
    Identity,
    LowRank,
    Preconditioner,
    nystrom,
    pivoted_cholesky,
)
from ntkpipe.linalg.solution import Reason
from ntkpipe.planning.memory import driver_memory, product_memory, tile_memory
from ntkpipe.run.context import Inputs
from ntkpipe.solvers.factors import Factors
from ntkpipe.solvers.problem import Problem, Solved, Tell, error_facts, sampled_rows
from ntkpipe.storage.checksum import digest
from ntkpipe.storage.store import ObjectStore
from ntkpipe.tasks.executor import Executor

# Of the products' kinds, what one rounds by.
ROUNDING = {"float32": 2.0**-24, "float64": 2.0**-53}

Say = Callable[..., None]


@dataclass(frozen=True)
class _Answer:
    """Solutions for every ridge and what a report says of them.

    Args:
        weights: (R, n, c).
        facts: JSON-ready.
        history: (passes, directions, largest relative residual) of every new step for the smallest ridge.
    """

    weights: np.ndarray
    facts: dict[str, Any]
    history: list[tuple[int, int, float]]


def solve_cg(inputs: Inputs, problem: Problem, key: str, executor: Executor, tell: Tell) -> Solved:
    """Converged weights for every ridge; a killed solve goes on from its last checkpoint."""
    config, c = inputs.config.solver, problem.targets.shape[1]
    began = time.monotonic()

    def say(line: str, **facts: Any) -> None:
        tell(f"{problem.name}: {line}", kernel=problem.name, **facts)

    with tile_operator(
        inputs.matrix(problem.source, "train"),
        executor,
        products=config.products,
        memory_bytes=_tile_memory(inputs, c),
    ) as held:
        operator = merged(held, problem.copies)
        factors = Factors.of(inputs, inputs.gram, problem.source, executor)
        answer = _every_ridge(config, operator, problem.targets, problem.ridges, inputs.store, key, factors, say)
        # Image kernels have one eigenvalue far above the others: a few passes with one vector.
        largest = largest_eigenvalue(operator, tolerance=1e-4)
        rows, errors = sampled_rows(inputs, problem.source, operator, executor)
        ceiling = operator.pair_bound()
    seconds = time.monotonic() - began
    facts = {
        "solver": "cg",
        "key": key,
        "products": config.products,
        "seconds": seconds,
        "largest": largest,
        "max_learning_rate": problem.filter.max_learning_rate(largest + min(problem.ridges)),
        **answer.facts,
        **error_facts(errors, ceiling),
    }
    facts["smallest"] = max(0.0, min(facts["smallest"], ceiling) - errors.noise)
    say(
        f"done, {facts['steps']} passes and {facts['sketch_passes']} for the preconditioner in {human_seconds(seconds)}, "
        f"true residual {facts['true_residual']:.1e}",
        force=True,
    )
    # What a residual lets a prediction be wrong by, as in the bound, for the convergence figure.
    ridge = min(problem.ridges)
    gain = final_gain(ridge, facts["smallest"]).value * math.sqrt(float(problem.test_diagonal.max()))
    size = float(np.linalg.norm(problem.targets, axis=0).max(initial=0.0))
    history = [(step, vectors, gain * size * residual) for step, vectors, residual in answer.history]
    return Solved(problem, None, answer.weights, rows, facts, history if math.isfinite(gain) else [])


def _every_ridge(
    config: SolverConfig,
    operator: AnyOperator,
    targets: np.ndarray,
    ridges: Sequence[float],
    store: ObjectStore,
    key: str,
    factors: Factors,
    say: Say,
) -> _Answer:
    """Solve for every ridge, the largest first: each starts from the one before.

    Args:
        config: of the solver.
        operator: the stored kernel.
        targets: (n, c).
        ridges: R absolute.
        store: for checkpoints; what a killed run has left is taken up, also that of other ridges and residuals.
        key: names the kernel, its images, labels and products.
        factors: of the kernel, where one is the preconditioner.
        say: receives a line for people and facts.

    Raises:
        IncompleteError: if it runs out of steps; its vectors are kept.
        NumericalError: for an indefinite kernel, or a residual that is not to be had; the text says what to do.
    """
    name = _name(config, min(ridges))
    mean = float(operator.diagonal().mean())
    began = time.monotonic()
    make, described = preconditioner(config, operator, min(ridges), store, key, factors, say)
    prepared = time.monotonic() - began
    solutions: dict[float, CgSolution] = {}
    history: list[tuple[int, int, float]] = []
    start = None
    clock = {"products": 0.0, "other": 0.0}
    for ridge in sorted(ridges, reverse=True):
        history.clear()

        def on_step(record: CgStep, ridge: float = ridge) -> None:
            clock["products"] += record.product_seconds
            clock["other"] += record.other_seconds
            history.append((record.step, record.directions, record.residual))
            say(
                f"ridge {ridge:.3g}: {record.step} passes, residual {record.residual:.1e}, wanted {config.residual:.0e}, "
                f"{record.product_seconds:.2g} s a pass",
                steps=record.step,
                residual=record.residual,
            )

        part = digest({"preconditioner": name, "ridge": repr(ridge)})
        found = block_cg(
            operator,
            targets,
            ridge=ridge,
            start=start,
            preconditioner=make(ridge),
            tolerance=config.residual,
            max_steps=config.max_steps,
            exact=lambda x: operator.matmul(x, products="float64"),
            rounding=ROUNDING[config.products],
            checkpoint=StoreCheckpoint(store, f"cg/{key}/{part}", part),
            checkpoint_every=config.checkpoint_every,
            on_step=on_step,
        )
        _require(found, ridge, mean, config)
        solutions[ridge], start = found, found.value
    facts = {
        "steps": sum(s.iterations for s in solutions.values()),
        "passes": [solutions[ridge].iterations for ridge in ridges],
        "reason": Reason.CONVERGED.name,
        "true_residual": max(s.residual for s in solutions.values()),
        "smallest": max(0.0, min(s.smallest - ridge for ridge, s in solutions.items())),
        "seconds_preconditioner": prepared,
        **{f"seconds_{k}": v for k, v in clock.items()},
        **described,
    }
    return _Answer(np.stack([solutions[ridge].value for ridge in ridges]), facts, list(history))


# A residual of the size of the targets is no solution.
_WORTH_HAVING = 0.01


def _require(found: CgSolution, ridge: float, mean: float, config: SolverConfig) -> None:
    """Raise what a solve that has not converged calls for."""
    if found.reason is Reason.MAX_STEPS:
        raise IncompleteError(
            f"cg has made {found.iterations} passes for ridge {ridge:.3g} and its residual is {found.residual:.1e}, above "
            f"solver.residual={config.residual:g}. Its vectors are kept: run with a larger solver.max_steps or "
            "solver.residual, in a run_dir of its own, or add a ridge."
        )
    if found.reason is Reason.STAGNATED:
        remedies = ["add a ridge (predict.ridges)"]
        if config.products != "float64":
            remedies.append("set solver.products=float64")
        remedies.append("give float64 tiles where they are float32 (kernel.dtype=float64)")
        if found.residual < _WORTH_HAVING:
            remedies.append(f"ask for what can be had (solver.residual={2 * found.residual:.0e})")
        raise NumericalError(
            f"cg stagnates for ridge {ridge:.3g} at a residual of {found.residual:.1e}, above solver.residual="
            f"{config.residual:g}: {', or '.join(remedies)}"
        )
    if not found.reason.ok:
        raise NumericalError(found.explain(ridge, mean))


def _tile_memory(inputs: Inputs, c: int) -> int:
    if inputs.config.solver.preconditioner == "float32_factor":
        return product_memory(inputs.memory_bytes, inputs.workers)
    driver = driver_memory(inputs.config, inputs.memory_bytes, free_memory())
    return tile_memory(inputs.config, inputs.n_train, c, inputs.memory_bytes, inputs.workers, driver)


def _name(config: SolverConfig, ridge: float) -> str:
    return f"{config.preconditioner}, rank {config.rank}, ridge {ridge!r}"


def preconditioner(
    config: SolverConfig,
    operator: AnyOperator,
    ridge: float,
    store: ObjectStore,
    key: str,
    factors: Factors,
    say: Say,
) -> tuple[Callable[[float], Preconditioner], dict[str, Any]]:
    """What makes the preconditioner of a ridge, and facts about it; a sketch is kept in the store.

    Args:
        config: of the solver.
        operator: the kernel.
        ridge: the smallest that it is for.
        store: where a sketch is looked for.
        key: names the kernel, its images and products.
        factors: of the kernel.
        say: receives a line for people.
    """
    prefix = f"cg/{key}/{digest(_name(config, ridge))}"
    facts: dict[str, Any] = {"preconditioner": config.preconditioner, "vectors": 0, "sketch_passes": 0}
    if config.preconditioner == "none":
        return lambda _: Identity(), facts
    if config.preconditioner == "float32_factor":
        say(f"float32 factor of {operator.n:,} x {operator.n:,}", force=True)
        return factors.preconditioner, {**facts, "vectors": operator.n}
    checkpoint = StoreCheckpoint(store, prefix, prefix)
    if kept := checkpoint.restore():
        arrays = kept[0]
        tail, passes, columns = arrays["scalars"].tolist()
        found = LowRank(arrays["vectors"], arrays["values"], tail, int(passes), int(columns))
        say(f"{config.preconditioner} preconditioner of rank {len(found.values)} found in the store", force=True)
    else:
        say(f"{config.preconditioner} preconditioner: looking at the kernel", force=True)
        if config.preconditioner == "nystrom":
            found = nystrom(operator, ridge=ridge, rank=config.rank, rounding=ROUNDING[config.products])
        else:
            found = pivoted_cholesky(operator, ridge=ridge, rank=config.rank)
        scalars = np.array([found.tail, found.passes, found.columns], dtype=np.float64)
        checkpoint.append(0, 1, {"vectors": found.vectors, "values": found.values, "scalars": scalars})
        say(f"{config.preconditioner} preconditioner: {found.at(ridge).cost()}", force=True)
    return found.at, {
        **facts,
        "vectors": len(found.values),
        "sketch_passes": found.passes,
        "sketch_columns": found.columns,
    }
