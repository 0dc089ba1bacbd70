"""Solutions with the spectrum of the kernel, exact or in a Krylov space. They support finite times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import numpy as np

from ntkpipe.dynamics.bounds import ErrorBudget, error_budget, krylov_factors
from ntkpipe.dynamics.estimates import Disturbance, disturbance, is_truncated, moved_weights, movement_of
from ntkpipe.dynamics.krylov import KrylovSolution, combined_weights, means_from_weights
from ntkpipe.dynamics.movement import summed_outputs
from ntkpipe.dynamics.restarted import RestartedSolution
from ntkpipe.dynamics.sampling import TestErrors
from ntkpipe.dynamics.times import Numbers
from ntkpipe.solvers.probing import row_facts
from ntkpipe.solvers.solution import Sensitivity, Shape, Solution, grid_of_times


@dataclass(frozen=True, repr=False)
class SpectralSolution(Solution):
    """A solution for every time and ridge; after restarts, only for the configured ones.

    Args:
        space: a basis with its projected problem, or restarted weights.
    """

    space: KrylovSolution | RestartedSolution
    probed: KrylovSolution | None = field(default=None, kw_only=True)
    """The space of the random vectors of `probing`; None for a complete basis, which contains them."""

    @property
    def times(self) -> tuple[float, ...]:
        """See `Solution.times`."""
        return self.problem.times or grid_of_times([self])

    def at(self, times: Numbers | None = None, ridges: Numbers | None = None) -> Self:
        """See `Solution.at`."""
        return replace(self, problem=self.problem.at(times, ridges))

    def spectrum(self) -> np.ndarray:
        """See `Solution.spectrum`."""
        return self.space.values

    def dual_weights(self) -> tuple[np.ndarray, Shape]:
        """See `Solution.dual_weights`."""
        weights = self.space.dual_weights(self.problem.filter, self.times, self.problem.ridges)
        return weights, (len(self.times), len(self.problem.ridges), self.space.c)

    def factors(self) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        """See `Solution.factors`."""
        return self.space.factors(self.problem.filter, self.times, self.problem.ridges)

    def budget(self, tests: TestErrors | None = None) -> ErrorBudget:
        """See `Solution.budget`."""
        problem = self.problem
        return error_budget(self.space, problem.filter, self.times, problem.ridges, rows=self.sample, tests=tests)

    def disturbance(self) -> Disturbance:
        """See `Solution.disturbance`."""
        problem, sample = self.problem, self.sample
        facts = row_facts(problem, sample.indices, self.noise, self.solver.pass_products)
        found = disturbance(self.space, problem.filter, self.times, problem.ridges, sample, facts)
        if is_truncated(self.space) and self._moved is None and not self.space.is_restarted:
            # After too few steps there is no earlier space to compare with, so the bound stands for the truncation error.
            missing = krylov_factors(self.space, problem.filter, self.times, problem.ridges)
            found = replace(found, lost=found.lost + missing)
        return found

    @cached_property
    def _moved(self) -> np.ndarray | None:
        problem = self.problem
        return moved_weights(self.space, int(self.facts["steps"]), problem.filter, self.times, problem.ridges)

    def probe_space(self) -> KrylovSolution | None:
        """The space of the random vectors, for error estimates."""
        return self.probed

    def sensitivity(self) -> Sensitivity | None:
        """See `Solution.sensitivity`."""
        problem, space = self.problem, self.probe_space()
        if space is None:
            return None
        times, ridges = self.times, problem.ridges
        columns, answers_of = space.factors(problem.filter, times, ridges)
        moved = self._moved
        factor, q = float(self.facts.get("estimate_factor", 1.0)), columns.shape[1]
        if moved is not None:
            assert isinstance(self.space, KrylovSolution)
            moved = summed_outputs(moved)
            columns = np.concatenate([columns, combined_weights(self.space.basis, moved)], axis=1)

        def values(product: np.ndarray) -> tuple[np.ndarray, np.ndarray | float]:
            found = factor * np.sqrt(np.mean(answers_of(product[:, :q]) ** 2, axis=3))
            if moved is None:
                return found, 0.0
            shape = (len(times), len(ridges), moved.shape[3])
            return found, movement_of(means_from_weights(product[:, q:], shape), self.space.c)

        return Sensitivity(columns, values)

    def left_out(self) -> np.ndarray:
        """See `Solution.left_out`."""
        return self.space.unlearnt(self.problem.filter, self.times, self.problem.ridges)

    def arrays(self) -> dict[str, np.ndarray]:
        """See `Solution.arrays`."""
        return {**super().arrays(), "spectrum": self.space.values}
