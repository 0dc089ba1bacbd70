"""Solutions of solvers that support only t = inf: Cholesky and conjugate gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from ntkpipe.dynamics.bounds import ErrorBudget
from ntkpipe.dynamics.direct_bounds import direct_budget
from ntkpipe.dynamics.estimates import Disturbance, direct_disturbance
from ntkpipe.dynamics.krylov import means_from_weights
from ntkpipe.dynamics.sampling import TestErrors
from ntkpipe.dynamics.times import Numbers
from ntkpipe.errors import ConfigError
from ntkpipe.solvers.probing import row_facts
from ntkpipe.solvers.problem import Problem
from ntkpipe.solvers.solution import Sensitivity, Shape, Solution


@dataclass(frozen=True, repr=False)
class ConvergedSolution(Solution):
    """A solution at t = inf for the ridges of the solve.

    Args:
        weights: dual weights (R, n, c).
    """

    weights: np.ndarray
    probed: np.ndarray | None = field(default=None, kw_only=True)
    """Weights (R, n, q) of the random vectors of `probing`; None without error estimates."""

    @property
    def times(self) -> tuple[float, ...]:
        """See `Solution.times`."""
        return (math.inf,)

    def at(self, times: Numbers | None = None, ridges: Numbers | None = None) -> Self:
        """See `Solution.at`."""
        problem = self.problem.at(times, ridges)
        require_the_end(problem, self.solver.kind)
        unknown = [
            r for r, one in zip(problem.asked_ridges, problem.ridges, strict=True) if one not in self.problem.ridges
        ]
        if unknown:
            raise ConfigError(
                f"{self.solver.kind} has no weights for ridges={unknown}, only for {list(self.problem.asked_ridges)}: "
                "solve again with these ridges, or use krylov or eigh, which support every ridge"
            )
        picked = [self.problem.ridges.index(ridge) for ridge in problem.ridges]
        probed = None if self.probed is None else self.probed[picked]
        return replace(self, problem=problem, weights=self.weights[picked], probed=probed)

    def spectrum(self) -> np.ndarray:
        """See `Solution.spectrum`."""
        raise ConfigError(
            f"{self.solver.kind} computes only the largest and the smallest eigenvalue: use krylov or eigh for a spectrum"
        )

    def dual_weights(self) -> tuple[np.ndarray, Shape]:
        """See `Solution.dual_weights`."""
        r, n, c = self.weights.shape
        return self.weights.transpose(1, 0, 2).reshape(n, r * c), (1, r, c)

    def budget(self, tests: TestErrors | None = None) -> ErrorBudget:
        """See `Solution.budget`."""
        assert self.sample.exact is not None
        return direct_budget(
            self.weights,
            self.problem.targets,
            self.problem.ridges,
            self.sample.indices,
            self.sample.exact,
            smallest=self.smallest,
            largest=self.largest,
            rows_stored=self.sample.stored,
            systematic=self.sample.systematic,
            tests=tests,
        )

    def disturbance(self) -> Disturbance:
        """See `Solution.disturbance`."""
        problem, sample = self.problem, self.sample
        facts = row_facts(problem, sample.indices, self.noise, self.solver.pass_products)
        ends = {"smallest": self.smallest, "largest": self.largest}
        found = direct_disturbance(self.weights, problem.targets, problem.ridges, sample, facts, **ends)
        # Random vectors say nothing of directions that rounding does not tell from null ones, and the weights may hold them.
        unknown = np.isin(problem.ridges, self.facts.get("unresolved_ridges", []))
        return replace(found, growth=np.where(unknown, math.inf, found.growth))

    def sensitivity(self) -> Sensitivity | None:
        """See `Solution.sensitivity`."""
        if self.probed is None:
            return None
        r, n, q = self.probed.shape

        def values(product: np.ndarray) -> tuple[np.ndarray, float]:
            return np.sqrt(np.mean(means_from_weights(product, (1, r, q)) ** 2, axis=3)), 0.0

        return Sensitivity(self.probed.transpose(1, 0, 2).reshape(n, r * q), values)

    def left_out(self) -> None:
        """See `Solution.left_out`."""
        return

    def arrays(self) -> dict[str, np.ndarray]:
        """See `Solution.arrays`."""
        probed = {} if self.probed is None else {"probed": self.probed}
        return {**super().arrays(), "weights": self.weights, **probed}


def require_the_end(problem: Problem, kind: str) -> None:
    """Refuse finite times for a solver that supports only t = inf.

    Raises:
        ConfigError: if finite times are requested; the text names solvers that support them.
    """
    if problem.times not in (None, (math.inf,)):
        raise ConfigError(
            f"{kind} supports only t = inf, not times={list(problem.times or ())}: use krylov or eigh for finite times"
        )
