"""Solutions that were refined at t = inf with entries computed in float64. Finite times are not refined."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from ntkpipe.dynamics.bounds import ErrorBudget
from ntkpipe.dynamics.estimates import Disturbance, error_estimate
from ntkpipe.dynamics.krylov import means_from_weights
from ntkpipe.dynamics.refined import RefinedWeights, refined_budget, refined_disturbance
from ntkpipe.dynamics.sampling import TestErrors, sample_indices
from ntkpipe.dynamics.times import Numbers
from ntkpipe.errors import ConfigError, DataError
from ntkpipe.linalg.assemble import unit_vectors
from ntkpipe.linalg.copies import AnyOperator, merged
from ntkpipe.linalg.operator import tile_operator
from ntkpipe.planning.memory import held_memory, product_memory
from ntkpipe.solvers.correcting import Inverse
from ntkpipe.solvers.prediction import KernelPredictions, warnings_of
from ntkpipe.solvers.probing import row_facts
from ntkpipe.solvers.solution import LeaveOneOut, Sensitivity, Shape, Solution
from ntkpipe.solvers.stochastic import ROWS, own_weights
from ntkpipe.solvers.workspace import Workspace
from ntkpipe.sources.exact_products import exact_products
from ntkpipe.sources.kernels import TestKernel
from ntkpipe.uncertainty.filters import Filters, Part

# Largest number of points for which direct solvers refine every leave-one-out error. Each error takes a column of the inverse.
_ALL = 2_000
_DIRECT = ("eigh", "cholesky")


@dataclass(frozen=True, repr=False)
class RefinedSolution(Solution):
    """A solution that was refined at t = inf, made by `refining.refine`.

    Args:
        base: the solution before refinement.
        refined: refined weights for the problem's ridges.
    """

    base: Solution
    refined: RefinedWeights

    @property
    def times(self) -> tuple[float, ...]:
        """See `Solution.times`."""
        return self.base.times

    def at(self, times: Numbers | None = None, ridges: Numbers | None = None) -> Self:
        """See `Solution.at`. Only the ridges that were refined are supported."""
        base, refined = self.base.at(times, ridges), self.refined
        if ridges is not None:
            known = self.problem.ridges
            if unknown := [r for r in base.problem.asked_ridges if r not in self.problem.asked_ridges]:
                raise ConfigError(
                    f"ridges={unknown} were not refined, only {list(self.problem.asked_ridges)}: solve again with these ridges, or "
                    "without refine"
                )
            refined = refined.picked([known.index(one) for one in base.problem.ridges])
        return replace(self, problem=base.problem, base=base, refined=refined)

    def spectrum(self) -> np.ndarray:
        """See `Solution.spectrum`. It is the spectrum of the stored kernel."""
        return self.base.spectrum()

    def dual_weights(self) -> tuple[np.ndarray, Shape]:
        """See `Solution.dual_weights`."""
        r, n, c = self.refined.weights.shape
        last = self.refined.weights.transpose(1, 0, 2).reshape(n, r * c)
        early, late = _split(self.times)
        if not early:
            return last, (1, r, c)
        weights, (t, _, _) = self.base.at(early).dual_weights()
        if not late:
            return weights, (t, r, c)
        return np.concatenate([weights, last], axis=1), (t + 1, r, c)

    def factors(self) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        """See `Solution.factors`."""
        weights, shape = self.dual_weights()
        return weights, lambda product: means_from_weights(product, shape)

    def budget(self, tests: TestErrors | None = None) -> ErrorBudget:
        """See `Solution.budget`. It holds for t = inf, with test rows computed in float64."""
        problem = self.problem
        return refined_budget(
            self.refined,
            problem.targets,
            problem.ridges,
            smallest=self.smallest,
            largest=self.largest,
            systematic=self.sample.systematic,
            tests=tests,
        )

    def disturbance(self) -> Disturbance:
        """See `Solution.disturbance`. It holds for t = inf."""
        problem, rows = self.problem, self.refined.rows
        facts = row_facts(problem, rows, self.noise, "float64")
        ends = {"smallest": self.smallest, "largest": self.largest}
        return refined_disturbance(self.refined, problem.targets, problem.ridges, self.sample, facts, **ends)

    def sensitivity(self) -> Sensitivity | None:
        """See `Solution.sensitivity`. It holds for t = inf. Movements are 0, because the residual contains the truncation error."""
        found = self.base.at((math.inf,)).sensitivity()
        if found is None:
            return None
        return Sensitivity(found.columns, lambda product: (found.values(product)[0], 0.0))

    def left_out(self) -> np.ndarray | None:
        """See `Solution.left_out`."""
        return self.base.left_out()

    def inverse(self, operator: AnyOperator, workspace: Workspace) -> Inverse:
        """See `Solution.inverse`."""
        return self.base.inverse(operator, workspace)

    def ridge_groups(self) -> list[tuple[float, ...]]:
        """See `Solution.ridge_groups`."""
        return self.base.ridge_groups()

    def filters(self, part: Part, ridges: tuple[float, ...]) -> AbstractContextManager[Filters]:
        """See `Solution.filters`. They are filters of the stored kernel."""
        return self.base.filters(part, ridges)

    def arrays(self) -> dict[str, np.ndarray]:
        """See `Solution.arrays`."""
        return {**self.base.arrays(), **self.refined.arrays("refined_")}

    def state(self) -> dict[str, np.ndarray]:
        """See `Solution.state`."""
        return self.base.state()

    def evaluate(
        self,
        test: TestKernel,
        times: Numbers | None = None,
        ridges: Numbers | None = None,
        *,
        covariance: str = "none",
        batch: int | None = None,
        workspace: Workspace | None = None,
    ) -> KernelPredictions:
        """See `Solution.evaluate`. Means at t = inf use test tiles computed in float64; finite times and variances use stored tiles."""
        one, place = self.at(self.times if times is None else times, ridges), workspace or self.workspace
        early, late = _split(one.times)
        if not late:
            return one.base.evaluate(test, covariance=covariance, batch=batch, workspace=place)
        last = one._end(test, place)
        if not early and covariance == "none":
            return last
        of_base = one.times if covariance != "none" else early
        found = one.base.evaluate(test, of_base, covariance=covariance, batch=batch, workspace=place)
        return _joined_times(found, last, len(early))

    def test_columns(self) -> np.ndarray:
        """Columns (n, k) that test tiles are multiplied with: refined weights, and columns for error estimates."""
        weights, found, aside = self.at((math.inf,)).dual_weights()[0], self.sensitivity(), self.refined.aside
        columns = [] if found is None else [found.columns]
        if found is not None and aside is not None:
            columns.append(aside.transpose(1, 0, 2).reshape(len(weights), -1))
        return np.concatenate([weights, *columns], axis=1)

    def leave_one_out(self, *, workspace: Workspace | None = None) -> LeaveOneOut:
        """See `Solution.leave_one_out`. Residuals are refined weights divided by refined entries of the diagonal of the inverse.

        Let x be the solution for a unit vector e with the stored kernel. The entry `2 e^T x - x^T A x` then has an error that is quadratic
        in the error of x. Direct solvers with up to 2,000 points use all points; other solves use a random sample.
        """
        problem, place = self.problem, workspace or self.workspace
        kernel, n = problem.kernel, problem.kernel.n
        every = self.solver.kind in _DIRECT and n <= _ALL
        rows = np.arange(n) if every else sample_indices(n, ROWS, seed=1)
        unit = unit_vectors(rows, n)
        even = kernel.copies.average(unit)
        with stored_operator(self.base, place) as operator:
            place.tell(f"{problem.name}: leave-one-out of {len(rows)} points, refined")
            inverse = self.inverse(operator, place)
            solved = [kernel.copies.average(inverse(even, ridge)) for ridge in problem.ridges]
        (product,) = exact_products(
            [(kernel, np.concatenate(solved, axis=1))],
            place.executor,
            place.store,
            place.tell,
        )
        weights, out = own_weights(self), []
        apart = np.sum((unit - even) ** 2, axis=0)  # part in the null space that equal points cause
        for j, (ridge, x) in enumerate(zip(problem.ridges, solved, strict=True)):
            image = product[:, j * len(rows) : (j + 1) * len(rows)] + ridge * x
            own = 2.0 * np.sum(even * x, axis=0) - np.sum(x * image, axis=0)
            own = own + apart / ridge if ridge > 0 else own
            out.append(weights[j][rows] / own[:, None])
        return LeaveOneOut(self.of_copies(np.stack(out), rows), rows, exact=every)

    def _end(self, test: TestKernel, workspace: Workspace) -> KernelPredictions:
        """Predictions at t = inf only."""
        one = self.at((math.inf,))
        problem = one.problem
        if test.shape[1] != problem.kernel.n:
            raise DataError(
                f"the test kernel has {test.shape[1]} columns, but the solution has {problem.kernel.n} training points: give a row for "
                "each test point and a column for each training point"
            )
        columns, (_, r, c) = one.test_columns(), one.dual_weights()[1]
        (made,) = exact_products(
            [(test, columns)],
            workspace.executor,
            workspace.store,
            workspace.tell,
        )
        rows = one.solver.config().sample_rows
        tests = test.measure(None, one.sample.systematic, workspace.executor, rows)
        means, estimate, found = means_from_weights(made[:, : r * c], (1, r, c)), None, one.sensitivity()
        if found is not None:
            low, high = r * c, r * c + found.columns.shape[1]
            aside = None if one.refined.aside is None else means_from_weights(made[:, high:], (1, r, 2 * c))
            estimate = error_estimate(
                one.disturbance(),
                found.values(made[:, low:high])[0],
                one.sample,
                tests,
                test.diagonal(),
                float(np.mean(problem.kernel.diagonal())),
                one.refined.moved(aside),
                means,
            )
        budget = one.budget(tests)
        return KernelPredictions(
            name=one.name,
            times=one.times,
            ridges=problem.asked_ridges,
            absolute_ridges=problem.ridges,
            ridge_scale=problem.ridge_scale,
            mean=means,
            budget=budget,
            test_diagonal=test.diagonal(),
            estimates_diagonal=test.estimates_diagonal,
            covariance=None,
            warnings=tuple(warnings_of(one, budget)),
            estimate=estimate,
        )


def stored_operator(solution: Solution, workspace: Workspace) -> Any:
    """Context manager: the stored kernel of a solution. It holds tiles in memory between passes."""
    room, problem, kernel = workspace.room, solution.problem, solution.problem.kernel
    products, settings = solution.solver.pass_products, solution.solver.config()
    if settings.kind in _DIRECT:
        memory = product_memory(room.budget, room.workers)
    else:
        memory = held_memory(settings, *problem.shape, problem.answers, room)
    return _Merged(tile_operator(kernel.matrix, workspace.executor, products=products, memory_bytes=memory), solution)


class _Merged:
    """Context manager: an operator with equal points merged."""

    def __init__(self, tiles: Any, solution: Solution) -> None:
        self._tiles, self._copies = tiles, solution.problem.kernel.copies

    def __enter__(self) -> AnyOperator:
        return merged(self._tiles.__enter__(), self._copies)

    def __exit__(self, *args: object) -> None:
        self._tiles.__exit__(*args)


def _split(times: tuple[float, ...]) -> tuple[tuple[float, ...], bool]:
    """The finite times, and whether the last time is inf."""
    return tuple(t for t in times if math.isfinite(t)), math.isinf(times[-1])


def _joined_times(early: KernelPredictions, last: KernelPredictions, kept: int) -> KernelPredictions:
    """Join the first `kept` times of `early` with the predictions of `last`. Variances are those of `early`."""

    def joined(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.concatenate([a[:kept], b], axis=0)

    names = ("krylov", "product", "storage_train", "storage_test", "kind")
    budget = ErrorBudget(*(joined(getattr(early.budget, name), getattr(last.budget, name)) for name in names))
    estimate = None
    if early.estimate is not None and last.estimate is not None:
        estimate = joined(early.estimate, last.estimate)
    return replace(
        early,
        times=(*early.times[:kept], math.inf),
        mean=joined(early.mean, last.mean),
        budget=budget,
        warnings=tuple(dict.fromkeys((*early.warnings, *last.warnings))),
        estimate=estimate,
    )
