"""A solver's side of a variance: its filters applied to a batch of columns, for a set of ridges.

A solver offers one thing, `Filters`: from the columns `a` (n, k) of a batch of test images to `a^T psi(A) a` or `phi(A) a`
at every time and ridge, with bounds on what it left out. Spaces (krylov, eigh) answer every time; solutions (cg, cholesky)
t = inf.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ntkpipe.dynamics import variance
from ntkpipe.dynamics.filters import SpectralFilter
from ntkpipe.dynamics.krylov import KrylovSolution
from ntkpipe.dynamics.stopping import resolved
from ntkpipe.dynamics.variance import Ensemble, KernelRows, Quadratic
from ntkpipe.errors import IncompleteError, NumericalError
from ntkpipe.linalg.cg import block_cg
from ntkpipe.linalg.copies import AnyOperator
from ntkpipe.linalg.factor.refine import refine
from ntkpipe.linalg.lanczos import LanczosResult, block_lanczos, largest_eigenvalue
from ntkpipe.linalg.solution import Reason
from ntkpipe.run.context import Inputs, KernelSource
from ntkpipe.solvers import cg as solving_cg
from ntkpipe.solvers.eigh import eigensystem
from ntkpipe.solvers.factors import Factors
from ntkpipe.solvers.problem import Problem, Solved, solve_key
from ntkpipe.tasks.executor import Executor

# Stopping is asked at steps that grow so much: each time an eigendecomposition of the projected kernel, of some hundred
# to some thousand rows, is made. They cost 1.6 times the last together, and a tenth of the steps may be wasted.
_GROWTH = 0.2


@dataclass(frozen=True)
class Part:
    """One kernel of a run, whole or one of its parts under flips, as variances need it.

    Args:
        inputs: of the run.
        gram: of `inputs.parts`.
        solved: the kernel's solution; its filter, ridges and facts are used.
        times: T times in steps.
        operator: the train-train kernel that is solved with.
        rows: sampled rows of it.
        largest_prior: largest `K_**` of the images.
        executor: for factors.
        full: covariances between images are wanted, whose errors are of first order.
        noise: norm of the errors of the stored tiles, see `KrylovSolution`.
        ceiling: an upper bound on the smallest eigenvalue, see `KrylovSolution`.
    """

    inputs: Inputs
    gram: KernelSource
    solved: Solved
    times: tuple[float, ...]
    operator: AnyOperator
    rows: KernelRows
    largest_prior: float
    executor: Executor
    full: bool
    noise: float = 0.0
    ceiling: float = math.inf

    @property
    def problem(self) -> Problem:
        """What was solved."""
        return self.solved.problem


@runtime_checkable
class Filters(Protocol):
    """Filters of a kernel at the times and ridges that it was opened for."""

    def posterior(self, columns: np.ndarray) -> Quadratic:
        """`a^T psi(A) a` of columns (n, k)."""
        ...

    def ensemble(self, columns: np.ndarray) -> Ensemble:
        """`phi(A) a` of columns (n, k)."""
        ...


@dataclass(frozen=True)
class SpaceFilters:
    """Filters in a space that is made for each batch, or serves all.

    Args:
        space: from columns, and whether they are for a quadratic form, to the solution with the columns as targets.
        spectral_filter: the training dynamics.
        times: T times in steps.
        ridges: absolute.
        rows: of the kernel.
    """

    space: Callable[[np.ndarray, bool], KrylovSolution]
    spectral_filter: SpectralFilter
    times: tuple[float, ...]
    ridges: tuple[float, ...]
    rows: KernelRows

    def posterior(self, columns: np.ndarray) -> Quadratic:
        """See `Filters.posterior`."""
        solution = self.space(columns, True)
        return variance.posterior_in_space(solution, self.spectral_filter, self.times, self.ridges, self.rows)

    def ensemble(self, columns: np.ndarray) -> Ensemble:
        """See `Filters.ensemble`."""
        solution = self.space(columns, False)
        return variance.ensemble_in_space(solution, self.spectral_filter, self.times, self.ridges, self.rows)


@dataclass(frozen=True)
class Solutions:
    """Of a batch: weights and residuals (R, n, k), and an estimate of the smallest eigenvalue without ridge."""

    weights: np.ndarray
    residuals: np.ndarray
    smallest: float


@dataclass(frozen=True)
class SolutionFilters:
    """Filters at t = inf from solutions.

    Args:
        solve: from columns, and whether they are for a quadratic form, to solutions.
        ridges: absolute.
        rows: of the kernel.
        largest: its largest eigenvalue.
    """

    solve: Callable[[np.ndarray, bool], Solutions]
    ridges: tuple[float, ...]
    rows: KernelRows
    largest: float

    def posterior(self, columns: np.ndarray) -> Quadratic:
        """See `Filters.posterior`."""
        made = self.solve(columns, True)
        return variance.posterior_of_solution(
            made.weights, made.residuals, columns, self.ridges, self.rows, smallest=made.smallest, largest=self.largest
        )

    def ensemble(self, columns: np.ndarray) -> Ensemble:
        """See `Filters.ensemble`."""
        made = self.solve(columns, False)
        return variance.ensemble_of_solution(
            made.weights, made.residuals, columns, self.ridges, self.rows, smallest=made.smallest, largest=self.largest
        )


def ridge_groups(kind: str, ridges: Sequence[float]) -> list[tuple[float, ...]]:
    """Ridges that are served together: all of them, or one by one where each takes a factor of its own."""
    return [(ridge,) for ridge in ridges] if kind == "cholesky" else [tuple(ridges)]


@contextmanager
def open_filters(part: Part, ridges: tuple[float, ...]) -> Iterator[Filters]:
    """The filters of the run's solver; what they hold in memory is freed at the end."""
    kind = part.inputs.config.solver.kind
    if kind in ("krylov", "eigh"):
        space = _krylov(part, ridges) if kind == "krylov" else _eigh(part)
        yield SpaceFilters(space, part.problem.filter, part.times, ridges, part.rows)
    else:
        solve = _cholesky(part, ridges) if kind == "cholesky" else _cg(part, ridges)
        own = part.gram == part.inputs.gram
        largest = part.solved.facts["largest"] if own else largest_eigenvalue(part.operator, tolerance=1e-2)
        yield SolutionFilters(solve, ridges, part.rows, largest)


def _krylov(part: Part, ridges: tuple[float, ...]) -> Callable[[np.ndarray, bool], KrylovSolution]:
    config, problem = part.inputs.config.solver, part.problem

    def space(columns: np.ndarray, quadratic: bool) -> KrylovSolution:
        worst = math.inf

        def stop(result: LanczosResult) -> bool:
            nonlocal worst
            solution = KrylovSolution.from_lanczos(result, part.noise, resolved(part.ceiling, part.noise))
            worst = 0.0
            if quadratic and not part.full:
                for ridge in ridges:
                    found = variance.quadratic_truncation(solution, problem.filter, part.times, ridge)
                    worst = max(worst, float(found.max(initial=0.0)))
            else:
                kappa = variance.ensemble_truncation(solution, problem.filter, part.times, ridges)
                worst = float((2.0 * math.sqrt(part.largest_prior) * kappa + kappa**2).max(initial=0.0))
            return worst <= config.tolerance

        result = block_lanczos(
            part.operator,
            columns,
            max_steps=config.max_steps,
            stop=stop,
            check_every=lambda step: step + max(1, math.ceil(_GROWTH * step)),
        )
        if result.reason is Reason.MAX_STEPS:
            raise IncompleteError(
                f"krylov has made {result.steps} passes for variances of {problem.name} and their bound is {worst:.1e}, above "
                f"solver.tolerance={config.tolerance:g} of the largest prior variance, {part.largest_prior:.2g}: run with a larger "
                "solver.max_steps or tolerance, in a run_dir of its own, or add a ridge. Batches that are finished are kept."
            )
        return KrylovSolution.from_lanczos(result, part.noise, part.ceiling)

    return space


def _eigh(part: Part) -> Callable[[np.ndarray, bool], KrylovSolution]:
    solution = part.solved.solution
    if part.gram == part.inputs.gram and isinstance(solution, KrylovSolution):
        values, vectors = solution.values, solution.basis.T
    else:
        system = eigensystem(part.inputs, part.gram, part.problem.source, lambda line: None)
        values, vectors = system.values, system.vectors
    copies = part.inputs.copies.count
    return lambda columns, quadratic: KrylovSolution.from_eigensystem(values, vectors, columns, part.noise, copies)


def _silent(*_: Any, **__: Any) -> None:
    """Progress is told by batch."""


def _residuals(part: Part, weights: np.ndarray, columns: np.ndarray, ridges: tuple[float, ...]) -> np.ndarray:
    """`a - (T + ridge) x` in float64, from one pass over the tiles: (R, n, k)."""
    r, n, k = weights.shape
    product = part.operator.matmul(weights.transpose(1, 0, 2).reshape(n, r * k), products="float64")
    images = product.reshape(n, r, k).transpose(1, 0, 2)
    return columns - images - np.asarray(ridges)[:, None, None] * weights


def _cholesky(part: Part, ridges: tuple[float, ...]) -> Callable[[np.ndarray, bool], Solutions]:
    (ridge,) = ridges
    # The one that the solve has left in the store; of an odd part under flips it is made here.
    factors = Factors.of(part.inputs, part.gram, part.problem.source, part.executor)
    factor = factors.factor(part.operator, ridge)
    smallest = max(min(factor.smallest_eigenvalue() - ridge, part.ceiling) - part.noise, 0.0)

    def solve(columns: np.ndarray, quadratic: bool) -> Solutions:
        if factor.dtype == "float32" and factors.precision == "mixed" and (part.full or not quadratic):
            weights = refine(factor, columns, part.operator).value[None]
        else:
            weights = factor.apply_inverse(columns)[None]
        return Solutions(weights, _residuals(part, weights, columns, ridges), smallest)

    return solve


def _cg(part: Part, ridges: tuple[float, ...]) -> Callable[[np.ndarray, bool], Solutions]:
    inputs, config, source = part.inputs, part.inputs.config.solver, part.problem.source
    key = solve_key(inputs, part.gram, source, config.products)
    # The one that the solve has left in the store; of an odd part under flips it is made here.
    factors = Factors.of(inputs, part.gram, source, part.executor)
    make, _ = solving_cg.preconditioner(config, part.operator, min(ridges), inputs.store, key, factors, _silent)
    made = {ridge: make(ridge) for ridge in ridges}
    known = part.solved.facts["smallest"] if part.gram == inputs.gram else 0.0

    def solve(columns: np.ndarray, quadratic: bool) -> Solutions:
        sizes = float(np.linalg.norm(columns, axis=0).max(initial=0.0))
        weights, seen, start = {}, 0.0, None
        for ridge in sorted(ridges, reverse=True):
            # A quadratic form is off by |r|^2 / l_min; otherwise by 2 sqrt(v) |r| / sqrt(l_min).
            floor = math.sqrt(max(known + ridge, np.finfo(np.float64).tiny))
            second = quadratic and not part.full
            room = math.sqrt(config.tolerance) if second else config.tolerance / (2 * math.sqrt(part.largest_prior))
            wanted = room * floor / sizes if sizes > 0 else 1.0
            found = block_cg(
                part.operator,
                columns,
                ridge=ridge,
                start=start,
                preconditioner=made[ridge],
                tolerance=float(np.clip(wanted, config.residual, 1e-2)),
                max_steps=config.max_steps,
                exact=lambda x: part.operator.matmul(x, products="float64"),
                rounding=solving_cg.ROUNDING[config.products],
            )
            if found.reason is Reason.MAX_STEPS:
                raise IncompleteError(
                    f"cg has made {found.iterations} passes for variances of {part.problem.name} and their residual is "
                    f"{found.residual:.1e}: run with a larger solver.max_steps or solver.residual, in a run_dir of its own, or "
                    "add a ridge. Batches that are finished are kept."
                )
            if found.reason is Reason.INDEFINITE:
                raise NumericalError(found.explain(ridge, float(part.operator.diagonal().mean())))
            # Where it stagnates the residual that it has is in the bound.
            weights[ridge], start = found.value, found.value
            seen = max(found.smallest - ridge, 0.0)  # the last, of the smallest ridge, counts
        stacked = np.stack([weights[ridge] for ridge in ridges])
        least = min((one for one in (known, seen) if one > 0), default=0.0)
        smallest = max(min(least, part.ceiling) - part.noise, 0.0)
        return Solutions(stacked, _residuals(part, stacked, columns, ridges), smallest)

    return solve
