"""Block Lanczos on stored tiles: one basis for every time, ridge and filter, or restarted where it outgrows its memory."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ntkpipe.dynamics.bounds import largest_factor, time_grid
from ntkpipe.dynamics.krylov import KrylovSolution
from ntkpipe.dynamics.restarted import RestartedSolution, RestartedWeights
from ntkpipe.dynamics.sampling import RowSample
from ntkpipe.dynamics.stopping import StopRule, stop_rule
from ntkpipe.dynamics.times import default_times
from ntkpipe.errors import ConfigError, IncompleteError
from ntkpipe.gram.plan import human_seconds
from ntkpipe.limits import free_memory
from ntkpipe.linalg.checkpoint import StoreCheckpoint
from ntkpipe.linalg.copies import AnyOperator, merged
from ntkpipe.linalg.lanczos import LanczosResult, block_lanczos
from ntkpipe.linalg.operator import tile_operator
from ntkpipe.linalg.pool_basis import PoolBasis
from ntkpipe.linalg.recurrence import StepRecord
from ntkpipe.linalg.restarted import LEAST_BLOCKS, restarted_lanczos
from ntkpipe.linalg.solution import Reason
from ntkpipe.planning.memory import basis_vectors, driver_memory, tile_memory
from ntkpipe.run.context import Inputs
from ntkpipe.solvers.problem import (
    Problem,
    Solved,
    Tell,
    error_facts,
    in_basis,
    sampled_rows,
    spectrum_facts,
)
from ntkpipe.sources.reference_rows import sample_size
from ntkpipe.storage.checksum import digest
from ntkpipe.tasks.executor import Executor


def solve_krylov(inputs: Inputs, problem: Problem, key: str, executor: Executor, tell: Tell) -> Solved:
    """A basis large enough for every time and ridge; a killed solve, or a later run, goes on from its last checkpoint."""
    config = inputs.config.solver
    products = config.products
    checkpoint = StoreCheckpoint(inputs.store, f"krylov/{key}", key)
    memory = (inputs.memory_bytes, inputs.workers, driver_memory(inputs.config, inputs.memory_bytes, free_memory()))
    capacity = basis_vectors(inputs.config, inputs.n_train, problem.targets.shape[1], *memory)
    matrix = inputs.matrix(problem.source, "train")
    began = time.monotonic()
    clock = {"products": 0.0, "orthogonalise": 0.0}

    rule: StopRule | None = None

    def on_step(record: StepRecord) -> None:
        clock["products"] += record.product_seconds
        clock["orthogonalise"] += record.orthogonalise_seconds
        history = rule.history if rule is not None else []
        bound = history[-1][2] if history else math.nan
        tell(
            f"{problem.name}: {record.step} passes, {record.vectors} vectors, "
            + (f"error bound {bound:.1e}, wanted {config.tolerance:.0e}, " if history else "")
            + f"{record.product_seconds:.2g} s a pass",
            kernel=problem.name,
            steps=record.step,
            bound=None if math.isnan(bound) else bound,
        )

    pooled = config.basis == "workers"
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(
            tile_operator(
                matrix,
                executor,
                products=products,
                memory_bytes=tile_memory(inputs.config, inputs.n_train, problem.targets.shape[1], *memory),
            )
        )
        operator = merged(held, problem.copies)
        tell(f"{problem.name}: measuring the rounding of tiles on {sample_size(inputs)} rows", force=True)
        sampled, errors = sampled_rows(inputs, problem.source, operator, executor)
        ceiling = operator.pair_bound()
        rule = stop_rule(
            problem.filter,
            problem.times,
            problem.ridges,
            largest_test_diagonal=float(problem.test_diagonal.max()),
            tolerance=config.tolerance,
            scales=problem.scales,
            noise=errors.noise,
            ceiling=ceiling,
        )
        cycles = restart_checkpoint(inputs, problem, key, errors.noise)
        basis = None
        if pooled:
            basis = PoolBasis(inputs.n_train, executor, memory_bytes=8 * inputs.n_train * capacity)
            stack.callback(basis.close)
        result = None
        if next(cycles.replay(), None) is None:
            result = block_lanczos(
                operator,
                problem.targets,
                max_steps=config.max_steps,
                max_vectors=None if pooled else capacity,  # what the workers' memory does not hold, their disks do
                stop=rule,
                checkpoint=checkpoint,
                checkpoint_every=config.checkpoint_every,
                on_step=on_step,
                basis=basis,
            )
        if result is None or pooled or result.reason is Reason.FULL:
            rows = sampled
            solution, reason, steps = _restarted(
                inputs, problem, operator, rows, rule, result, cycles, capacity, on_step, tell, basis
            )
            solution = replace(solution, ceiling=ceiling)
            residual = _true_restarted(problem, solution, operator)
        else:
            reason, steps, solution = result.reason, result.steps, rule.solution
            if solution is None or len(solution.values) < result.tridiagonal.size:
                solution = KrylovSolution.from_lanczos(result, errors.noise)
            solution = replace(solution, ceiling=ceiling)
            rows = in_basis(sampled, solution.basis)
            residual = _true_residual(problem, solution, operator)
    seconds = time.monotonic() - began
    facts = {
        "solver": "krylov",
        "steps": steps,
        "vectors": len(solution.values),
        "reason": reason.name,
        "key": key,
        "restarted": isinstance(solution, RestartedSolution),
        "products": products,
        "true_residual": residual,
        "bound": rule.history[-1][2] if rule.history else 0.0,
        "seconds": seconds,
        **{f"seconds_{k}": v for k, v in clock.items()},
        **spectrum_facts(problem, solution),
        **error_facts(errors, ceiling),
    }
    if reason is Reason.MAX_STEPS:
        raise IncompleteError(
            f"krylov has made {steps} passes for {problem.name} and its error bound is {facts['bound']:.1e} of the largest "
            f"target, above solver.tolerance={config.tolerance:g}. What it has is kept: run with a larger solver.max_steps or "
            "tolerance, in a run_dir of its own, or add a ridge."
        )
    tell(
        f"{problem.name}: done, {steps} passes in {human_seconds(seconds)}, true residual {residual:.1e}",
        force=True,
    )
    return Solved(problem, solution, None, rows, facts, list(rule.history))


def restart_checkpoint(inputs: Inputs, problem: Problem, key: str, noise: float) -> StoreCheckpoint:
    """Of a restarted solve: unlike a basis it knows its times and ridges alone, and which eigenvalues it took for null."""
    name = digest(
        {
            "key": key,
            "times": [repr(t) for t in problem.times or ()],
            "ridges": [repr(r) for r in problem.ridges],
            "filter": repr(problem.filter),
            "tolerance": inputs.config.solver.tolerance,
            "rows": sample_size(inputs),
            "noise": repr(noise),
        }
    )
    return StoreCheckpoint(inputs.store, f"krylov/{key}.{name}", name)


def restarted_weights(
    inputs: Inputs, problem: Problem, rows: RowSample, noise: float, rule: StopRule | None, start: np.ndarray
) -> RestartedWeights:
    """What adds up weights over the cycles; the sampled rows are watched, as stored and recomputed."""
    scale = math.sqrt(float(problem.test_diagonal.max()))

    def good(solution: RestartedSolution, steps: int) -> bool:
        if rule is not None:
            solution = replace(solution, ceiling=rule.ceiling)
        worst = scale * largest_factor(solution, problem.filter, solution.times, problem.ridges, problem.scales)
        if rule is not None:
            rule.history.append((steps, len(solution.values), worst))
        return worst <= inputs.config.solver.tolerance

    assert problem.times is not None
    assert rows.exact is not None
    return RestartedWeights(
        problem.filter,
        problem.times,
        problem.ridges,
        problem.targets,
        start,
        grid=time_grid,
        good=good,
        indices=rows.indices,
        watched=np.concatenate([rows.stored, rows.exact]),
        noise=noise,
    )


def _restarted(
    inputs: Inputs,
    problem: Problem,
    operator: AnyOperator,
    rows: RowSample,
    rule: StopRule,
    first: LanczosResult | None,
    cycles: StoreCheckpoint,
    capacity: int,
    on_step: Callable[[StepRecord], None],
    tell: Tell,
    basis: PoolBasis | None,
) -> tuple[RestartedSolution, Reason, int]:
    """Go on within a basis of `capacity` vectors; returns what `solve_krylov` needs of it.

    A finished basis over the workers is one cycle: weights are taken from it, and its vectors stay where they are.
    """
    config = inputs.config.solver
    if problem.times is None:
        assert first is not None
        found = KrylovSolution.from_lanczos(first, rule.noise)
        ridge = min(problem.ridges)
        times = ",".join(f"{t:g}" for t in default_times(problem.filter, found.largest + ridge, found.smallest + ridge))
        raise ConfigError(
            f"the basis of {problem.name} has outgrown its memory ({capacity} vectors), and a restarted solve must know the "
            f"times beforehand: set them, for instance predict.times=[{times}], or raise solver.basis_gib"
        )
    start = np.zeros((0, problem.targets.shape[1])) if first is None else first.start
    answer = restarted_weights(inputs, problem, rows, rule.noise, rule, start)
    if basis is None:
        tell(f"{problem.name}: the basis is restarted, {capacity} vectors fit (solver.basis_gib)", force=True)
    elif first is not None:
        capacity = max(len(basis), LEAST_BLOCKS * first.start.shape[1])
    reason, steps = restarted_lanczos(
        operator,
        answer,
        capacity=capacity,
        max_steps=config.max_steps,
        ridge=min(problem.ridges),
        first=first,
        basis=basis,
        checkpoint=cycles,
        checkpoint_every=config.checkpoint_every,
        on_step=on_step,
    )
    return answer.solution, reason, steps


def _true_restarted(problem: Problem, solution: RestartedSolution, operator: AnyOperator) -> float:
    """As `_true_residual`: at `t = inf` from one more pass, at a finite time from the sampled rows."""
    j = problem.ridges.index(min(problem.ridges))
    norms = np.linalg.norm(problem.targets, axis=0)
    if math.isinf(solution.times[-1]):
        weights = solution.weights[:, -1, j]
        residual = problem.targets - operator.matmul(weights, products="float64") - problem.ridges[j] * weights
    else:
        i, k = solution.grid.index(solution.times[-1]), len(solution.indices)
        residual = solution.asked[i, j] - problem.ridges[j] * solution.here[i, j] - solution.along[i, j, :k]
        residual *= math.sqrt(solution.n / max(k, 1))
    return float((np.linalg.norm(residual, axis=0) / np.where(norms > 0, norms, 1.0)).max())


def _true_residual(problem: Problem, solution: KrylovSolution, operator: AnyOperator) -> float:
    """Largest `|b - u' - A u| / |b|` over the outputs, from one more pass, at the last time and the smallest ridge."""
    at = math.inf if problem.times is None else problem.times[-1]
    ridge = min(problem.ridges)
    values, cutoff = solution.shifted(ridge)
    phi = problem.filter.weights(values, at, cutoff=cutoff)[:, None] * solution.targets
    learnt = 1.0 - problem.filter.decay(values, at, cutoff=cutoff)
    asked = solution.basis.T @ solution.rotate(learnt[:, None] * solution.targets)
    weights = solution.basis.T @ solution.rotate(phi)
    residual = asked - operator.matmul(weights, products="float64") - ridge * weights
    norms = np.linalg.norm(problem.targets, axis=0)
    return float((np.linalg.norm(residual, axis=0) / np.where(norms > 0, norms, 1.0)).max())
