"""Tiled Cholesky factorisation: t = inf only, a factor for each ridge."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from ntkpipe.errors import NumericalError
from ntkpipe.linalg.direct import DirectSolution
from ntkpipe.linalg.factor.posterior import leave_one_out, log_determinant, log_marginal_likelihood
from ntkpipe.linalg.lanczos import largest_eigenvalue
from ntkpipe.linalg.operator import TileOperator, tile_operator
from ntkpipe.linalg.solution import Reason
from ntkpipe.planning.memory import product_memory
from ntkpipe.run.context import Inputs
from ntkpipe.solvers.factors import Factors
from ntkpipe.solvers.problem import Problem, Solved, Tell, error_facts, sampled_rows, with_own_targets
from ntkpipe.tasks.executor import Executor


def solve_cholesky(inputs: Inputs, problem: Problem, executor: Executor, tell: Tell) -> Solved:
    """Converged weights for every ridge; a killed solve goes on from the tiles that it has finished."""
    began = time.monotonic()
    factors = Factors.of(inputs, inputs.gram, problem.source, executor)
    weights, each = [], []

    def say(line: str, **facts: Any) -> None:
        tell(f"{problem.name}: {line}", kernel=problem.name, **facts)

    with tile_operator(
        factors.matrix,
        executor,
        products="float64",
        memory_bytes=product_memory(inputs.memory_bytes, inputs.workers),
    ) as operator:
        for ridge in problem.ridges:
            say(f"Cholesky of {inputs.n_train:,} rows, ridge {ridge:.3g}, {factors.precision}", force=True)

            def on_tile(dtype: str, done: int, of: int, ridge: float = ridge) -> None:
                say(f"ridge {ridge:.3g}: {done:,} of {of:,} tiles of the {dtype} factor", tiles=done)

            found = factors.solve(problem.targets, operator, ridge, on_tile)
            if found.story:
                say(
                    f"ridge {ridge:.3g}: {found.story}; answered by {found.method}, {found.run.factor.dtype}",
                    force=True,
                )
            if not found.reason.ok:
                other = ", or solver.precision=mixed" if factors.precision == "float32" else ""
                text = f"{problem.name}, ridge {ridge:.3g}: residual {found.residual:.1e}; {found.reason}{other}"
                raise NumericalError(text)
            weights.append(found.value)
            each.append(_facts(inputs, problem, found, operator, ridge))
        # Image kernels have one eigenvalue far above the others: a few passes with one vector.
        largest = largest_eigenvalue(operator, tolerance=1e-4)
        rows, errors = sampled_rows(inputs, problem.source, operator, executor)
        ceiling = operator.pair_bound()
    facts = {
        "solver": "cholesky",
        "steps": 1,
        "vectors": inputs.n_train,
        "reason": Reason.CONVERGED.name,
        "true_residual": max(one["residual"] for one in each),
        "seconds": time.monotonic() - began,
        "largest": largest,
        "smallest": max(0.0, min(ceiling, *(one.pop("smallest") for one in each)) - errors.noise),
        "max_learning_rate": problem.filter.max_learning_rate(largest + min(problem.ridges)),
        "factors": each,
        **error_facts(errors, ceiling),
    }
    return Solved(problem, None, np.stack(weights), rows, facts)


def _facts(
    inputs: Inputs, problem: Problem, found: DirectSolution, operator: TileOperator, ridge: float
) -> dict[str, Any]:
    """Of one ridge, JSON-ready: how the factor came about, and what it says of the model."""
    run = found.run
    y, weights = with_own_targets(inputs, problem, found.value, ridge)
    facts: dict[str, Any] = {
        "ridge": ridge,
        "precision": run.factor.dtype,
        "method": found.method,
        "refinements": found.iterations,
        "residual": found.residual,
        "story": found.story,
        "edge": run.plan.edge,
        "tiles": run.plan.tasks,
        "computed": run.computed,
        "seconds": run.seconds,
        "flops_per_second": run.rate,
        "bytes_read": run.read_bytes,
        "smallest": run.factor.smallest_eigenvalue() - ridge - found.raised,
    }
    if found.method == "cg":
        return facts  # the factor is that of a matrix near by: what it says of the model is not of this one
    logdet = log_determinant(run.factor, operator)
    facts |= {
        "logdet": logdet.value,
        "logdet_standard_error": logdet.standard_error,
        "log_marginal_likelihood": log_marginal_likelihood(y, weights, logdet.value).tolist(),
    }
    if inputs.config.solver.leave_one_out:
        out = leave_one_out(run.factor, operator, weights)
        right = np.argmax(y - out.residuals, axis=1) == np.argmax(y, axis=1)
        facts |= {
            "leave_one_out_mse": float(np.mean(out.residuals**2)),
            "leave_one_out_accuracy": float(right.mean()) if y.shape[1] > 1 else None,
            "leave_one_out_relative_error": out.error,
        }
    return facts
