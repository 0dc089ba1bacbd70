"""Krylov solves whose basis does not fit into memory. They support only the configured times and ridges."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ntkpipe.dynamics.bounds import largest_factor, time_grid
from ntkpipe.dynamics.krylov import KrylovSolution
from ntkpipe.dynamics.restarted import RestartedSolution, RestartedWeights
from ntkpipe.dynamics.sampling import RowSample
from ntkpipe.dynamics.stopping import StopRule
from ntkpipe.dynamics.times import default_times
from ntkpipe.errors import ConfigError
from ntkpipe.linalg.checkpoint import StoreCheckpoint
from ntkpipe.linalg.copies import AnyOperator
from ntkpipe.linalg.lanczos import LanczosResult
from ntkpipe.solvers.facts import relative_residual
from ntkpipe.solvers.problem import Problem
from ntkpipe.storage.checksum import digest
from ntkpipe.storage.protocol import ObjectStore


@dataclass(frozen=True)
class Restarts:
    """The sums over restarted cycles, and their checkpoints.

    Args:
        problem: the problem.
        tolerance: tolerance of the solver.
        key: key of the basis.
        sample: sampled rows of the kernel, on which residuals are computed.
        noise: norm of the errors of the tiles.
        rows: configured number of sampled rows.
    """

    problem: Problem
    tolerance: float
    key: str
    sample: RowSample
    noise: float
    rows: int

    def checkpoint(self, store: ObjectStore) -> StoreCheckpoint:
        """The checkpoint. Its key contains the times, the ridges, and the noise that decides which eigenvalues are null."""
        problem = self.problem
        name = digest(
            {
                "key": self.key,
                "times": [repr(t) for t in problem.times or ()],
                "ridges": [repr(r) for r in problem.ridges],
                "filter": repr(problem.filter),
                "tolerance": self.tolerance,
                "rows": self.rows,
                "noise": repr(self.noise),
            }
        )
        return StoreCheckpoint(store, f"krylov/{self.key}.{name}", name)

    def require_times(self, first: LanczosResult | None, capacity: int) -> None:
        """Refuse to continue without configured times.

        Raises:
            ConfigError: with an example.
        """
        problem = self.problem
        if problem.times is not None:
            return
        assert first is not None
        found = KrylovSolution.from_lanczos(first, self.noise)
        ridge = min(problem.ridges)
        times = ",".join(f"{t:g}" for t in default_times(problem.filter, found.largest + ridge, found.smallest + ridge))
        raise ConfigError(
            f"the basis of {problem.name} exceeds its memory ({capacity} vectors), and a restarted solve needs the "
            f"times in advance: set them, for instance predict.times=[{times}], or raise solver.basis_gib"
        )

    def weights(self, rule: StopRule | None, start: np.ndarray) -> RestartedWeights:
        """The object that adds up weights over the cycles.

        Args:
            rule: the stopping rule; None for a finished solve.
            start: (m0, c), the targets in the first block of the basis.
        """
        problem, sample = self.problem, self.sample
        scale = math.sqrt(problem.kernel.largest_test_diagonal)

        def good(solution: RestartedSolution, steps: int) -> bool:
            if rule is not None:
                solution = replace(solution, ceiling=rule.ceiling)
            worst = scale * largest_factor(solution, problem.filter, solution.times, problem.ridges, problem.scales)
            if rule is not None:
                rule.history.append((steps, len(solution.values), worst))
            return worst <= self.tolerance

        assert problem.times is not None
        assert sample.exact is not None
        return RestartedWeights(
            problem.filter,
            problem.times,
            problem.ridges,
            problem.targets,
            start,
            grid=time_grid,
            good=good,
            indices=sample.indices,
            watched=np.concatenate([sample.stored, sample.exact]),
            noise=self.noise,
        )

    def restored(self, state: dict[str, np.ndarray]) -> RestartedSolution:
        """A finished solve, from a stored `RestartedWeights.state`."""
        answer = self.weights(None, np.zeros((0, self.problem.shape[1])))
        answer.load(state)
        return answer.solution

    def true_residual(self, solution: RestartedSolution, operator: AnyOperator) -> float:
        """Largest `|b - u' - A u| / |b|` over the outputs at the smallest ridge.

        It takes one more pass at t = inf, and only the sampled rows at finite times.
        """
        problem = self.problem
        j = problem.ridges.index(min(problem.ridges))
        if math.isinf(solution.times[-1]):
            weights = solution.weights[:, -1, j]
            residual = problem.targets - operator.matmul(weights, products="float64") - problem.ridges[j] * weights
        else:
            i, k = solution.grid.index(solution.times[-1]), len(solution.indices)
            residual = solution.asked[i, j] - problem.ridges[j] * solution.here[i, j] - solution.along[i, j, :k]
            residual *= math.sqrt(solution.n / max(k, 1))
        return relative_residual(residual, problem.targets)
