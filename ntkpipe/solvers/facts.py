"""The facts that are stored about every solve, JSON-ready."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ntkpipe.dynamics.krylov import KrylovSolution
from ntkpipe.linalg.basis import spanned
from ntkpipe.linalg.copies import AnyOperator
from ntkpipe.solvers.problem import Problem
from ntkpipe.sources.kernels import KernelSample


def error_facts(measured: KernelSample, ceiling: float = math.inf) -> dict[str, float]:
    """Facts about the errors of the tiles, and the upper bound on the smallest eigenvalue."""
    found = {"noise": measured.noise, "systematic": measured.systematic, "rounding": measured.rounding}
    return found if math.isinf(ceiling) else {**found, "ceiling": ceiling}


def spectrum_facts(problem: Problem, largest: float, smallest: float) -> dict[str, Any]:
    """Facts about the spectrum, for the report."""
    rate = problem.filter.max_learning_rate(largest + min(problem.ridges))
    return {"largest": largest, "smallest": smallest, "max_learning_rate": rate}


def relative_residual(residual: np.ndarray, targets: np.ndarray) -> float:
    """The largest norm of a column of `residual` (n, c), relative to that of the targets (n, c)."""
    norms = np.linalg.norm(targets, axis=0)
    return float((np.linalg.norm(residual, axis=0) / np.where(norms > 0, norms, 1.0)).max())


def true_residual(problem: Problem, solution: KrylovSolution, operator: AnyOperator) -> float:
    """Largest `|b - u' - A u| / |b|` over the outputs at the last time and the smallest ridge. It takes one more pass."""
    at = math.inf if problem.times is None else problem.times[-1]
    ridge = min(problem.ridges)
    values, cutoff = solution.shifted(ridge)
    phi = problem.filter.weights(values, at, cutoff=cutoff)[:, None] * solution.targets
    learnt = 1.0 - problem.filter.decay(values, at, cutoff=cutoff)
    asked = spanned(solution.basis, solution.rotate(learnt[:, None] * solution.targets))
    weights = spanned(solution.basis, solution.rotate(phi))
    residual = asked - operator.matmul(weights, products="float64") - ridge * weights
    return relative_residual(residual, problem.targets)
