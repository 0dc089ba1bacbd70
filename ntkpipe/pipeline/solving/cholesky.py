"""Cholesky factorisation in memory: t = inf only."""

from __future__ import annotations

import math
import time

import numpy as np

from ntkpipe.dynamics.sampling import RowSample
from ntkpipe.errors import NumericalError
from ntkpipe.linalg.assemble import assemble
from ntkpipe.linalg.cholesky import cholesky
from ntkpipe.linalg.lanczos import largest_eigenvalue
from ntkpipe.linalg.operator import DenseOperator
from ntkpipe.linalg.solution import Reason
from ntkpipe.pipeline.exact import exact_rows
from ntkpipe.pipeline.inputs import Inputs
from ntkpipe.pipeline.solving.problem import Problem, Solved, Tell
from ntkpipe.tasks.executor import Executor


def solve_cholesky(inputs: Inputs, problem: Problem, executor: Executor, tell: Tell) -> Solved:
    """Converged weights for every ridge, a factor each."""
    began = time.monotonic()
    n = inputs.n_train
    matrix = inputs.matrix(problem.source, "train")
    array = assemble(matrix, np.float64)
    operator = DenseOperator(array)
    weights, residual, smallest = [], 0.0, math.inf
    for ridge in problem.ridges:
        tell(f"{problem.name}: Cholesky of {n:,} x {n:,}, ridge {ridge:.3g}", force=True)
        factor = cholesky(array, ridge=ridge)
        found = factor.solve(problem.targets, operator)
        if not found.reason.ok:
            raise NumericalError(f"{problem.name}, ridge {ridge:.3g}: residual {found.residual:.1e}; {found.reason}")
        weights.append(found.value)
        residual = max(residual, found.residual)
        smallest = min(smallest, factor.smallest_eigenvalue() - ridge)
    largest = largest_eigenvalue(operator)
    sampled = exact_rows(inputs, "train", executor)
    rows = RowSample(sampled.indices, operator.rows(sampled.indices), sampled.kernels[problem.source])
    facts = {
        "solver": "cholesky",
        "steps": 1,
        "vectors": n,
        "reason": Reason.CONVERGED.name,
        "true_residual": residual,
        "seconds": time.monotonic() - began,
        "largest": largest,
        "smallest": max(smallest, 0.0),
        "max_learning_rate": problem.filter.max_learning_rate(largest + min(problem.ridges)),
    }
    return Solved(problem, None, np.stack(weights), rows, facts)
