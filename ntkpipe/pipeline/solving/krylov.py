"""Block Lanczos on stored tiles: one basis for every time, ridge and filter."""

from __future__ import annotations

import math
import time

import numpy as np

from ntkpipe.dynamics.krylov import KrylovSolution
from ntkpipe.dynamics.stopping import stop_rule
from ntkpipe.errors import IncompleteError
from ntkpipe.gram.plan import human_seconds
from ntkpipe.linalg.checkpoint import StoreCheckpoint
from ntkpipe.linalg.lanczos import StepRecord, block_lanczos
from ntkpipe.linalg.operator import TileOperator, tile_operator
from ntkpipe.linalg.solution import Reason
from ntkpipe.pipeline.exact import sample_size
from ntkpipe.pipeline.inputs import Inputs
from ntkpipe.pipeline.memory import tile_memory
from ntkpipe.pipeline.solving.problem import Problem, Solved, Tell, sample_basis, spectrum_facts
from ntkpipe.tasks.executor import Executor


def solve_krylov(inputs: Inputs, problem: Problem, key: str, executor: Executor, tell: Tell) -> Solved:
    """A basis large enough for every time and ridge; a killed solve, or a later run, goes on from its last checkpoint."""
    config = inputs.config.solver
    products = config.products
    rule = stop_rule(
        problem.filter,
        problem.times,
        problem.ridges,
        largest_test_diagonal=float(problem.test_diagonal.max()),
        tolerance=config.tolerance,
    )
    checkpoint = StoreCheckpoint(inputs.store, f"krylov/{key}", key)
    matrix = inputs.matrix(problem.source, "train")
    began = time.monotonic()
    clock = {"products": 0.0, "orthogonalise": 0.0}

    def on_step(record: StepRecord) -> None:
        clock["products"] += record.product_seconds
        clock["orthogonalise"] += record.orthogonalise_seconds
        bound = rule.history[-1][2] if rule.history else math.nan
        tell(
            f"{problem.name}: {record.step} passes, {record.vectors} vectors, "
            + (f"error bound {bound:.1e}, wanted {config.tolerance:.0e}, " if rule.history else "")
            + f"{record.product_seconds:.2g} s a pass",
            kernel=problem.name,
            steps=record.step,
            bound=None if math.isnan(bound) else bound,
        )

    with tile_operator(
        matrix,
        executor,
        products=products,
        memory_bytes=tile_memory(
            inputs.config, inputs.n_train, problem.targets.shape[1], inputs.memory_bytes, inputs.workers
        ),
    ) as operator:
        result = block_lanczos(
            operator,
            problem.targets,
            max_steps=config.max_steps,
            stop=rule,
            checkpoint=checkpoint,
            checkpoint_every=config.checkpoint_every,
            on_step=on_step,
        )
        solution = rule.solution
        if solution is None or len(solution.values) < result.tridiagonal.size:
            solution = KrylovSolution.from_lanczos(result)
        tell(f"{problem.name}: {result.steps} passes, measuring rounding on {sample_size(inputs)} rows", force=True)
        rows = sample_basis(inputs, problem, solution.basis, operator, executor)
        residual = _true_residual(problem, solution, operator)
    seconds = time.monotonic() - began
    facts = {
        "solver": "krylov",
        "steps": result.steps,
        "vectors": len(solution.values),
        "reason": result.reason.name,
        "key": key,
        "products": products,
        "true_residual": residual,
        "bound": rule.history[-1][2] if rule.history else 0.0,
        "seconds": seconds,
        **{f"seconds_{k}": v for k, v in clock.items()},
        **spectrum_facts(problem, solution),
    }
    if result.reason is Reason.MAX_STEPS:
        raise IncompleteError(
            f"krylov has made {result.steps} passes for {problem.name} and its error bound is {facts['bound']:.1e}, above "
            f"solver.tolerance={config.tolerance:g}. The basis is kept: run with a larger solver.max_steps or tolerance, in a "
            "run_dir of its own, or add a ridge."
        )
    tell(
        f"{problem.name}: done, {result.steps} passes in {human_seconds(seconds)}, true residual {residual:.1e}",
        force=True,
    )
    return Solved(problem, solution, None, rows, facts, list(rule.history))


def _true_residual(problem: Problem, solution: KrylovSolution, operator: TileOperator) -> float:
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
