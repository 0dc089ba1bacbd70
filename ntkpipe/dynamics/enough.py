"""The rule of `solver.stop=estimate`, which stops when test predictions are accurate enough.

The rule estimates how much further steps may move the means of some test points (`movement.py`). It compares this with the tolerance, and
with a tenth of the errors that tiles and rounding cause in these means (`estimates.py`), because smaller truncation errors are negligible.
It also computes the bound of `stopping.py`, at steps that grow by a fifth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from ntkpipe.dynamics.bounds import largest_factor
from ntkpipe.dynamics.estimates import STOPPING, RowFacts, TestErrors, disturbance, error_estimate, movement_of
from ntkpipe.dynamics.krylov import KrylovSolution
from ntkpipe.dynamics.movement import TestMeans, in_sums, summed
from ntkpipe.dynamics.sampling import RowSample
from ntkpipe.dynamics.stopping import StopRule, steps_to_go
from ntkpipe.linalg.lanczos import LanczosResult

OTHER = 0.1
"""Share of the other errors below which the truncation error is negligible."""
# Relative growth of the steps at which all eigenvectors are computed. The second holds if the means come from eigenvectors.
_LOOKS, _CLOSE_LOOKS = 0.2, 0.05
# Eigenvectors are also computed if the coupling to the next block is at most this share of the first diagonal block.
_COUPLED = 1e-8
# First step at which bounds are computed if there are many outputs.
_FIRST_BOUND = 3


@dataclass(frozen=True)
class OtherErrors:
    """Errors of test predictions other than truncation: errors of the stored tiles, and rounding.

    Args:
        sample: sampled training rows. Only their indices and systematic errors are used, because `EstimateRule.means` has the products of
            the stored rows, and then of the recomputed rows, with the basis.
        facts: facts about the rows.
        spread: root mean square of the error of an entry of test rows, in units of `sqrt(k(x, x))`.
        diagonal: (p,) `k(x, x)` of the test points.
    """

    sample: RowSample
    facts: RowFacts
    spread: float
    diagonal: np.ndarray

    def estimate(self, rule: EstimateRule, solution: KrylovSolution) -> np.ndarray:
        """Estimates (T, R, p, k) for the targets of the space. They are low, because sensitivities are those within the space."""
        means = rule.means
        p, q, m = len(means.rows), len(self.sample.indices), len(solution.values)
        along = means.along[:, :m]
        stored, exact = along[p : p + q], along[p + q :]
        sample = replace(self.sample, stored=stored, exact=exact if len(exact) else None)
        facts = replace(self.facts, evaluation=STOPPING)
        found = disturbance(solution, means.spectral_filter, means.times, means.ridges, sample, facts)
        # Directions that are left out do not count here, because further steps would not find them.
        found = replace(found, lost=np.zeros_like(found.lost), growth=np.ones_like(found.growth))
        tests = TestErrors(0.0, spread=np.full(p, self.spread))
        turned = along[:p] if solution.rotation is None else along[:p] @ solution.rotation
        sensitivity = np.zeros((len(means.times), len(means.ridges), p))
        for j, ridge in enumerate(means.ridges):
            values, cutoff = solution.shifted(ridge)
            for i, time in enumerate(means.times):
                phi = means.spectral_filter.weights(values, time, cutoff=cutoff)
                sensitivity[i, j] = np.linalg.norm(turned * phi, axis=1)
        return error_estimate(found, sensitivity, sample, tests, self.diagonal, self.facts.diagonal)


@dataclass
class EstimateRule:
    """The rule that stops when a growing Krylov space is large enough for test predictions. It depends only on the recurrence, not on time.

    Args:
        bound: the rule of bounds, which is also evaluated.
        means: means of the test points.
        others: other errors of the means; None is no other errors.

    Attributes:
        estimates: for every step (block steps, largest remaining movement, largest allowed movement), in units of the targets.
        allowed: allowed movements (T, R, p, k), or one number for all, in units of the targets.
        rounding: whether the remaining movement is above the tolerance, but negligible beside other errors.
    """

    bound: StopRule
    means: TestMeans
    others: OtherErrors | None = None
    estimates: list[tuple[int, float, float]] = field(default_factory=list)
    rounding: bool = False
    allowed: np.ndarray | float = math.inf

    @property
    def history(self) -> list[tuple[int, int, float]]:
        """See `StopRule`."""
        return self.bound.history

    @property
    def solution(self) -> KrylovSolution | None:
        """See `StopRule`."""
        return self.bound.solution

    @property
    def ceiling(self) -> float:
        """See `StopRule`."""
        return self.bound.ceiling

    @staticmethod
    def check_every(step: int) -> int:
        """The next step at which the rule is called, which is the next step."""
        return step + 1

    def __call__(self, result: LanczosResult) -> bool:
        """True if further steps move no mean of a test point by more than is allowed, or if every bound is at most the tolerance."""
        step = len(result.block_sizes)
        self.means.follow(result)
        looks = _LOOKS if self.means.by_blocks else _CLOSE_LOOKS
        if _is_look(step, looks) or _hardly_coupled(result):
            self._look(step, result)
            if self.history and self.history[-1][2] <= self.bound.tolerance:
                return True
        elif not self.means.by_blocks:
            return False
        if not self._is_enough(step):
            return False
        if self.solution is None or len(self.solution.values) < result.tridiagonal.size:
            # Since the last eigendecomposition, allowed movements may have grown, and directions may have become null.
            self._look(step, result)
            return self._is_enough(step)
        return True

    def _look(self, step: int, result: LanczosResult) -> None:
        """Compute all eigenvectors, and from them the bound, the allowed movements, and whether directions are left out."""
        rule, means = self.bound, self.means
        found = rule.solution = KrylovSolution.from_lanczos(result, rule.noise, rule.ceiling)
        rule.eigensystems += 1
        if step >= _FIRST_BOUND or not summed(means.outputs):  # many outputs take long, and a few steps never suffice
            worst = largest_factor(found, rule.spectral_filter, rule.times, rule.ridges, rule.scales)
            self.history.append((step, len(found.values), math.sqrt(rule.largest_test_diagonal) * worst))
        if not means.by_blocks or found.unlearnt(rule.spectral_filter, rule.times, rule.ridges).any():
            means.record(step, found)
        self.allowed = rule.tolerance
        if self.others is not None:
            other = self.others.estimate(self, in_sums(found, rule.scales))
            if summed(means.outputs):
                other = np.sqrt(np.mean(other**2, axis=3, keepdims=True))
            self.allowed = np.maximum(rule.tolerance, OTHER * other)

    def _is_enough(self, step: int) -> bool:
        moved = self.means.moved(step)
        if moved is None:
            return False
        moved = movement_of(moved, self.means.outputs)
        largest = float(moved.max(initial=0.0))
        share = float((moved / self.allowed).max(initial=0.0))
        wanted = largest / share if share > 0 else self.bound.tolerance
        self.estimates.append((step, largest, wanted))
        self.rounding = share <= 1 and largest > self.bound.tolerance
        return share <= 1

    def steps_to_go(self) -> int | None:
        """See `StopRule.steps_to_go`. It uses the estimates."""
        return (
            steps_to_go([(step, value) for step, value, _ in self.estimates], self.estimates[-1][2])
            if self.estimates
            else None
        )


def _hardly_coupled(result: LanczosResult) -> bool:
    """Whether the space is almost invariant, so that the next block would consist of rounding errors."""
    return bool(np.linalg.norm(result.coupling) <= _COUPLED * np.linalg.norm(result.tridiagonal.diagonals[0]))


def _is_look(step: int, growth: float) -> bool:
    """Whether a step is in the sequence that starts at 1 and grows by the factor `1 + growth`."""
    at = 1
    while at < step:
        at += max(1, math.ceil(growth * at))
    return at == step
