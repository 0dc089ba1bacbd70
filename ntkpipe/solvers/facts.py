"""What is kept of every solve, JSON-ready."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ntkpipe.solvers.problem import Problem
from ntkpipe.sources.kernels import KernelSample


def error_facts(measured: KernelSample, ceiling: float = math.inf) -> dict[str, float]:
    """What is kept of the errors of the tiles, and of the upper bound on the smallest eigenvalue."""
    found = {"noise": measured.noise, "systematic": measured.systematic, "rounding": measured.rounding}
    return found if math.isinf(ceiling) else {**found, "ceiling": ceiling}


def spectrum_facts(problem: Problem, largest: float, smallest: float) -> dict[str, Any]:
    """What a report says of the spectrum."""
    rate = problem.filter.max_learning_rate(largest + min(problem.ridges))
    return {"largest": largest, "smallest": smallest, "max_learning_rate": rate}


def relative_residual(residual: np.ndarray, targets: np.ndarray) -> float:
    """The largest norm of a column of `residual` (n, c), in units of that of the targets (n, c)."""
    norms = np.linalg.norm(targets, axis=0)
    return float((np.linalg.norm(residual, axis=0) / np.where(norms > 0, norms, 1.0)).max())
