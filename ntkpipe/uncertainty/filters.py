"""A solver's side of a variance: its filters applied to a batch of columns, for a set of ridges.

A solver offers one thing, `Filters`: from the columns `a` (n, k) of a batch of test points to `a^T psi(A) a` or `phi(A) a`
at every time and ridge, with bounds on what it left out. Spaces (krylov, eigh) answer every time; solutions (cg, cholesky)
t = inf.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from ntkpipe.dynamics import variance
from ntkpipe.dynamics.filters import SpectralFilter
from ntkpipe.dynamics.krylov import KrylovSolution
from ntkpipe.dynamics.variance import Ensemble, KernelRows, Quadratic
from ntkpipe.linalg.copies import AnyOperator
from ntkpipe.sources.kernels import TrainKernel

if TYPE_CHECKING:
    from ntkpipe.solvers.workspace import Workspace


@dataclass(frozen=True)
class Part:
    """A kernel, whole or one of its parts under flips, as variances need it.

    Args:
        kernel: that is solved with.
        own: whether the solution is of this very kernel; of an odd part under flips it is not.
        times: T times in steps.
        operator: the train-train kernel.
        rows: sampled rows of it.
        largest_prior: largest `K_**` of the test points.
        full: covariances between test points are wanted, whose errors are of first order.
        noise: norm of the errors of the stored tiles, see `KrylovSolution`.
        ceiling: an upper bound on the smallest eigenvalue, see `KrylovSolution`.
        workspace: where.
    """

    kernel: TrainKernel
    own: bool
    times: tuple[float, ...]
    operator: AnyOperator
    rows: KernelRows
    largest_prior: float
    full: bool
    noise: float
    ceiling: float
    workspace: Workspace


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
class BatchWeights:
    """Of a batch: weights and residuals (R, n, k), and an estimate of the smallest eigenvalue without ridge."""

    weights: np.ndarray
    residuals: np.ndarray
    smallest: float


@dataclass(frozen=True)
class WeightFilters:
    """Filters at t = inf from solved systems.

    Args:
        solve: from columns, and whether they are for a quadratic form, to weights.
        ridges: absolute.
        rows: of the kernel.
        largest: its largest eigenvalue.
    """

    solve: Callable[[np.ndarray, bool], BatchWeights]
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


def residuals(operator: AnyOperator, weights: np.ndarray, columns: np.ndarray, ridges: tuple[float, ...]) -> np.ndarray:
    """`a - (T + ridge) x` in float64, from one pass over the tiles: (R, n, k)."""
    r, n, k = weights.shape
    product = operator.matmul(weights.transpose(1, 0, 2).reshape(n, r * k), products="float64")
    images = product.reshape(n, r, k).transpose(1, 0, 2)
    return columns - images - np.asarray(ridges)[:, None, None] * weights
