"""Errors of weights at `t = inf` that were refined against entries computed in float64 (docs/mathematics.md derives them).

With D the stored minus the exact kernel and d the last correction, `y - A u = D d + r`. The residual r of the solve for the correction is
known in all rows. `D d` is measured on sampled rows. It is an error of second order, because d depends on D. If the entries of D are
independent with variance s^2, `D d = D A^-1 D u` has the mean `s^2 tr(A^-1) u`, and the remainder is nearly independent of the direction of
a test point. Bounds use the whole norm. Estimates use the standard deviation of the remainder, and the effect of `u` and r on a test
point, which is its kernel times `A^-1 [u, r]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ntkpipe.dynamics.bounds import ErrorBudget, error_of_test_rows, scaled
from ntkpipe.dynamics.estimates import DIRECT, Disturbance, RowFacts, entry_rounding, evaluation_rounding
from ntkpipe.dynamics.filters import EPS
from ntkpipe.dynamics.gains import RIGOROUS, final_gain
from ntkpipe.dynamics.residuals import ROUNDING
from ntkpipe.dynamics.sampling import RowSample, TestErrors, norm_safety

LOOSE = 0.1
"""Relative residual of the solves for error estimates."""
# Safety factors for errors that are not completely independent of the direction of a test point: the ratio of their standard deviation to
# that of independent errors. On CIFAR-10 (300 to 1,200 images, depths 1 to 10) it was 0.9 to 1.4 for `D d`, and 1.0 to 2.5 for residuals of
# iterations, which lie in directions of small eigenvalues as test points do.
_CORRELATED, _CONCENTRATED = 2.0, 2.5


@dataclass(frozen=True)
class RefinedWeights:
    """Refined weights at `t = inf`, and the residuals of their equation.

    Args:
        weights: (R, n, c) dual weights.
        rows: (k,) sampled rows.
        residual: (R, k, c) `y - A u` at the sampled rows, with entries computed in float64.
        left_rows: (R, k, c) residual of the solve for the last correction, at the sampled rows.
        left: (R, c) norms of this residual over all rows.
        aside: (R, n, 2c) `A^-1` times the weights and times the residual of the last correction, with a relative residual of `LOOSE`.
            None if there are many outputs, or no estimates were requested.
    """

    weights: np.ndarray
    rows: np.ndarray
    residual: np.ndarray
    left_rows: np.ndarray
    left: np.ndarray
    aside: np.ndarray | None = None

    def picked(self, ridges: Sequence[int]) -> RefinedWeights:
        """The refined weights of some ridges, given by their indices."""
        kept = list(ridges)
        parts = (self.weights, self.residual, self.left_rows, self.left)
        weights, residual, left_rows, left = (part[kept] for part in parts)
        return RefinedWeights(
            weights, self.rows, residual, left_rows, left, None if self.aside is None else self.aside[kept]
        )

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays by name, for saving."""
        return {f"{prefix}{name}": one for name, one in vars(self).items() if one is not None}

    def along(self, ridge: int) -> float:
        """Upper estimate of the coefficient of the weights in the mean of `D d`, for the ridge with index `ridge`.

        It is fitted to the sampled rows of all outputs, plus two standard errors.
        """
        size = np.linalg.norm(self.weights[ridge], axis=0)
        scale = np.where(size > 0, size, 1.0)
        found = (self.residual[ridge] - self.left_rows[ridge]) / scale
        weights = self.weights[ridge][self.rows] / scale
        total = float(np.sum(weights**2))
        if total == 0:
            return 0.0
        share = float(np.sum(weights * found)) / total
        return abs(share) + 2.0 * math.sqrt(float(np.mean((found - share * weights) ** 2)) / total)

    def moved(self, aside: np.ndarray | None) -> np.ndarray | float:
        """Errors (1, R, p, c) of means other than independent errors, from the test kernel times `aside` (1, R, p, 2c); 0 for None."""
        if aside is None:
            return 0.0
        weights, left = np.split(np.abs(aside), 2, axis=3)
        share = np.array([self.along(j) for j in range(len(self.weights))])[:, None, None]
        return share * np.maximum(weights, np.sqrt(np.mean(weights**2, axis=2, keepdims=True))) + (1 + LOOSE) * left

    def remainder(self, ridge: int) -> np.ndarray:
        """Bound (c,) on the norm of `D d` over all rows, for the ridge with index `ridge`."""
        n, k = self.weights.shape[1], len(self.rows)
        size = np.linalg.norm(self.residual[ridge] - self.left_rows[ridge], axis=0)
        return norm_safety(k, n) * math.sqrt(n / max(k, 1)) * size


def refined_budget(
    refined: RefinedWeights,
    targets: np.ndarray,
    ridges: Sequence[float],
    *,
    smallest: float,
    largest: float,
    systematic: float,
    tests: TestErrors | None,
) -> ErrorBudget:
    """Bounds (1, R, c) on the errors of refined predictions, by origin. Arguments are those of `direct_bounds.direct_budget`."""
    c = targets.shape[1]
    product, storage = (np.zeros((1, len(ridges), c)) for _ in range(2))
    kind = np.full((1, len(ridges)), RIGOROUS, dtype="<U12")
    for j, ridge in enumerate(ridges):
        gain, size = final_gain(ridge, smallest), np.linalg.norm(refined.weights[j], axis=0)
        floor = ROUNDING * EPS * ((largest + ridge) * size + np.linalg.norm(targets, axis=0))
        product[0, j] = scaled(gain, refined.left[j] + floor)
        storage[0, j] = scaled(gain, refined.remainder(j) + systematic * size)
        kind[0, j] = gain.kind
    test = error_of_test_rows(refined.weights[None], largest, tests, None if tests is None else tests.rows)
    return ErrorBudget(np.zeros((1, len(ridges), c)), product, storage, test, kind)


def refined_disturbance(
    refined: RefinedWeights,
    targets: np.ndarray,
    ridges: Sequence[float],
    sample: RowSample,
    facts: RowFacts,
    *,
    smallest: float,
    largest: float,
) -> Disturbance:
    """The disturbance (1, R, c) of the equation of refined weights. Arguments are those of `estimates.direct_disturbance`."""
    r, _, c = refined.weights.shape
    row, bias, grown = np.zeros((1, r, c)), np.zeros((1, r, c)), np.ones((1, r))
    sizes = np.linalg.norm(refined.weights, axis=1)[None]
    target = np.linalg.norm(targets, axis=0)
    for j, ridge in enumerate(ridges):
        size = sizes[0, j]
        row[0, j] = evaluation_rounding(facts, largest + ridge, size, target) + entry_rounding(facts, sample, size)
        row[0, j] += _CORRELATED**2 * facts.mean_square(refined.residual[j] - refined.left_rows[j])
        known = LOOSE if refined.aside is not None else 1.0
        row[0, j] += (_CONCENTRATED * known * refined.left[j]) ** 2 / facts.total
        bias[0, j] = 0.0 if sample.rounding else sample.systematic * size
        if refined.aside is None:
            bias[0, j] += refined.along(j) * size
        grown[0, j] = facts.growth(largest, smallest, ridge, math.inf)
    floor = facts.product * EPS * math.sqrt(largest) * sizes
    return Disturbance(row, bias, sizes, floor, np.zeros_like(row), grown, DIRECT)
