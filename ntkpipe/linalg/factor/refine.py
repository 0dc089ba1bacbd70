"""Iterative refinement: corrections with the factor, and residuals with float64 products of the matrix."""

from __future__ import annotations

import numpy as np

from ntkpipe.linalg.factor.solve import CholeskyFactor
from ntkpipe.linalg.operator import Operator
from ntkpipe.linalg.solution import Reason, Solution


def refine(
    factor: CholeskyFactor, b: np.ndarray, operator: Operator, *, tolerance: float = 1e-14, max_refinements: int = 20
) -> Solution[np.ndarray]:
    """Solve `(A + ridge I) x = b` to the accuracy of float64, also with a float32 factor.

    It converges if the unit roundoff of the factor times the condition number is below one, so for condition numbers up to
    1e7 with a float32 factor.

    Args:
        factor: factor of `A + ridge I`.
        b: `(n, k)` float64.
        operator: `A` (without the ridge), with float64 products.
        tolerance: largest relative residual of every column. A residual at the level of its own rounding also suffices.
        max_refinements: largest number of corrections after the first solve.

    Returns:
        `x` `(n, k)` float64, with its measured residual; STAGNATED if a correction no longer halves it.
    """
    b = np.asarray(b, dtype=np.float64)
    norms = np.linalg.norm(b, axis=0)
    norms[norms == 0] = 1.0
    x, residual = np.zeros_like(b), b
    best, worst = x, np.inf
    sweeps, reason = 0, Reason.STAGNATED
    while sweeps <= max_refinements:
        sweeps += 1
        x = x + factor.apply_inverse(residual)
        residual = b - operator.matmul(x) - factor.ridge * x
        now = float((np.linalg.norm(residual, axis=0) / norms).max(initial=0.0))
        stagnated = not now < worst / 2
        if now < worst:
            best, worst = x, now
        if worst <= tolerance or stagnated:
            break
    if worst <= max(tolerance, residual_floor(best, b, operator, factor.ridge)):
        reason = Reason.CONVERGED
    return Solution(best, worst, sweeps, reason)


def residual_floor(x: np.ndarray, b: np.ndarray, operator: Operator, ridge: float, unit: float = 2.0**-52) -> float:
    """The smallest relative residual that can be reached: residuals are computed to about `unit |A| |x|`.

    Args:
        x: `(n, k)` solution.
        b: `(n, k)` right-hand sides of the solution.
        operator: `A`, positive semi-definite to rounding, so that `|A| <= trace A`.
        ridge: absolute.
        unit: unit roundoff of the arithmetic.
    """
    norms = np.linalg.norm(b, axis=0)
    trace = float(operator.diagonal().sum()) + len(b) * ridge
    return float((4 * unit * trace * np.linalg.norm(x, axis=0) / np.where(norms > 0, norms, 1.0)).max(initial=0.0))
