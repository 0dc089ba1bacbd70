"""The part of a variance that a solver computes: its spectral filters applied to a batch of columns.

Every solver implements `Filters`. It maps the columns `a` (n, k) of a batch of test points to `a^T psi(A) a` or
`phi(A) a` at every time and ridge, with bounds on the truncated part. Solvers that keep a space (krylov, eigh) support
every time; solvers that keep only solutions (cg, cholesky) support t = inf.
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
    """A kernel, or one of its parts under flips, for variances.

    Args:
        kernel: the kernel that is solved with.
        own: whether the solution belongs to this exact kernel; false for the odd part under flips.
        times: T times in steps.
        operator: the train-train kernel.
        rows: sampled rows of the kernel.
        largest_prior: largest `K_**` of the test points.
        full: whether covariances between test points are computed; their errors are of first order.
        noise: norm of the errors of the stored tiles, see `KrylovSolution`.
        ceiling: an upper bound on the smallest eigenvalue, see `KrylovSolution`.
        workspace: store, executor and memory of the computation.
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
    """Spectral filters of a kernel at the times and ridges for which the object was created."""

    def posterior(self, columns: np.ndarray) -> Quadratic:
        """The quadratic form `a^T psi(A) a` for every column a of an (n, k) array."""
        ...

    def ensemble(self, columns: np.ndarray) -> Ensemble:
        """The weights `phi(A) a` for every column a of an (n, k) array."""
        ...


@dataclass(frozen=True)
class SpaceFilters:
    """Filters in a Krylov space, which is built for each batch or shared by all batches.

    Args:
        space: a function of the columns, and of whether they are for a quadratic form. It returns the solution with
            the columns as targets.
        spectral_filter: the training dynamics.
        times: T times in steps.
        ridges: absolute.
        rows: sampled rows of the kernel.
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
    """Solved systems of one batch.

    Args:
        weights: (R, n, k).
        residuals: (R, n, k).
        smallest: an estimate of the smallest eigenvalue of the kernel without ridge.
    """

    weights: np.ndarray
    residuals: np.ndarray
    smallest: float


@dataclass(frozen=True)
class WeightFilters:
    """Filters at t = inf from solved systems.

    Args:
        solve: a function of the columns, and of whether they are for a quadratic form. It returns their weights.
        ridges: absolute.
        rows: sampled rows of the kernel.
        largest: largest eigenvalue of the kernel.
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
    """The residuals `a - (T + ridge) x` (R, n, k) in float64, from one pass over the tiles."""
    r, n, k = weights.shape
    product = operator.matmul(weights.transpose(1, 0, 2).reshape(n, r * k), products="float64")
    images = product.reshape(n, r, k).transpose(1, 0, 2)
    return columns - images - np.asarray(ridges)[:, None, None] * weights
