"""Residuals of approximate dual weights in the equation of training, by origin, at one time and ridge; see `bounds.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ntkpipe.dynamics.filters import EPS, SpectralFilter
from ntkpipe.dynamics.krylov import KrylovSolution
from ntkpipe.dynamics.restarted import RestartedSolution
from ntkpipe.dynamics.sampling import RowSample, independent_share, norm_safety

# Residual from rounding in the evaluation, in units of eps (|A| |u| + |b|). It was at most 8 for the spectra of the tests.
ROUNDING = 16.0
# Residual from the contour of a finite time, in units of |b|. Its error is at most 1e-14 |b| / sqrt(l), and the gain is 1 / sqrt(l).
QUADRATURE = 2e-14

AnySolution = KrylovSolution | RestartedSolution


@dataclass(frozen=True)
class Residuals:
    """Norms (c,) of the parts of the residual at one time and ridge. `left` is the norm of targets along directions that are left out."""

    krylov: np.ndarray
    product: np.ndarray
    storage: np.ndarray
    left: np.ndarray


def residuals_at(
    solution: AnySolution, spectral_filter: SpectralFilter, time: float, ridge: float, sample: RowSample | None
) -> tuple[Residuals, np.ndarray]:
    """Norms of the parts of the residual, and the residual of the truncated space in the coordinates of the next block (k, c).

    Args:
        solution: evaluated basis, or restarted weights.
        spectral_filter: the training dynamics.
        time: time in steps.
        ridge: absolute ridge.
        sample: sampled training rows. With None, the rounding error is its float64 floor.
    """
    if isinstance(solution, RestartedSolution):
        return _restarted(solution, time, ridge, sample)
    values, cutoff = solution.shifted(ridge)
    phi = spectral_filter.weights(values, time, cutoff=cutoff)[:, None] * solution.targets
    krylov = solution.tail @ phi  # b - u' - A u = -V_next tail phi for exact products
    # The filter sets slightly negative Ritz values to zero, which causes this residual inside the space.
    moved = np.linalg.norm((np.maximum(values, 0.0) - values)[:, None] * phi, axis=0)
    size = np.linalg.norm(phi, axis=0)
    floor = ROUNDING * EPS * ((solution.largest + ridge) * size + np.linalg.norm(solution.targets, axis=0))
    if solution.start_error is not None:
        floor = floor + solution.start_error
    storage = np.zeros(solution.c)
    left = solution.left_out(spectral_filter, time, ridge)[1]
    if sample is None:
        return Residuals(np.linalg.norm(krylov, axis=0) + moved, floor, storage, left), krylov
    residual, rounded = _rows_in_space(solution, spectral_filter, time, ridge, sample, phi, krylov)
    scale = norm_safety(len(sample.indices), solution.n) * math.sqrt(solution.n / max(len(sample.indices), 1))
    product = scale * np.linalg.norm(residual, axis=0) + floor
    if rounded is not None:
        storage = scale * np.linalg.norm(rounded, axis=0) * independent_share(solution.n)
    return Residuals(np.linalg.norm(krylov, axis=0) + moved, product, storage + sample.systematic * size, left), krylov


def _rows_in_space(
    solution: KrylovSolution,
    spectral_filter: SpectralFilter,
    time: float,
    ridge: float,
    sample: RowSample,
    phi: np.ndarray,
    krylov: np.ndarray,
) -> tuple[np.ndarray, np.ndarray | None]:
    """The residuals of `row_residuals`, from the weights `phi` (m, c) and the residual `krylov` (k, c) of `residuals_at`."""
    values, cutoff = solution.shifted(ridge)
    # The value that A u should have at the sampled rows: targets without null directions, minus the part that is not learnt yet.
    decay = spectral_filter.decay(values, time, cutoff=cutoff)
    asked = (
        np.where(spectral_filter.unlearnt(values, time, cutoff=cutoff), 0.0, 1.0 - decay)[:, None] * solution.targets
    )
    weights, asked = solution.rotate(phi), solution.rotate(asked)
    rows = sample.indices
    here = solution.basis[:, rows].T
    residual = here @ (asked - ridge * weights) - sample.stored @ weights
    residual += solution.next_block[:, rows].T @ krylov
    return residual, None if sample.exact is None else (sample.stored - sample.exact) @ weights


def _rows_of_restarts(
    solution: RestartedSolution, i: int, j: int, ridge: float, sample: RowSample
) -> tuple[np.ndarray, np.ndarray | None]:
    """The residuals of `row_residuals` for restarted weights, at time `i` of the grid and ridge `j`."""
    k = len(sample.indices)
    along, exact = solution.along[i, j, :k], solution.along[i, j, k:]
    residual = solution.asked[i, j] - ridge * solution.here[i, j] - along
    residual -= solution.next_block[:, sample.indices].T @ solution.coefficients[i, j]
    return residual, along - exact if len(exact) else None


def row_residuals(
    solution: AnySolution, spectral_filter: SpectralFilter, time: float, ridge: float, sample: RowSample
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """The residuals of the equation of the weights at the sampled rows.

    Returns:
        Residuals (k, c) of rounded products; errors (k, c) of the stored tiles times the weights, or None if the stored kernel is exact;
        and the residual of the truncated space in the coordinates of the next block.
    """
    if isinstance(solution, RestartedSolution):
        i, j = solution.grid.index(time), solution.ridges.index(ridge)
        return *_rows_of_restarts(solution, i, j, ridge, sample), solution.coefficients[i, j]
    values, cutoff = solution.shifted(ridge)
    phi = spectral_filter.weights(values, time, cutoff=cutoff)[:, None] * solution.targets
    krylov = solution.tail @ phi
    return *_rows_in_space(solution, spectral_filter, time, ridge, sample, phi, krylov), krylov


def _restarted(
    solution: RestartedSolution, time: float, ridge: float, sample: RowSample | None
) -> tuple[Residuals, np.ndarray]:
    """The results of `residuals_at` for restarted weights. Products with the sampled rows were summed during the cycles.

    Of `sample`, only the indices and the systematic errors are used.
    """
    i, j = solution.grid.index(time), solution.ridges.index(ridge)
    left = solution.coefficients[i, j]
    krylov, target = np.linalg.norm(left, axis=0), np.linalg.norm(solution.targets, axis=0)
    # |u| grows with time, so |u| at the next requested time is an upper bound.
    later = min((t for t in solution.times if t >= time), default=solution.times[-1])
    size = np.linalg.norm(solution.weights[:, solution.times.index(later), j], axis=0)
    floor = ROUNDING * EPS * ((solution.largest + ridge) * size + target) + QUADRATURE * target
    lost = solution.left_out(solution.spectral_filter, time, ridge)[1]
    if sample is None:
        return Residuals(krylov, floor, np.zeros(solution.c), lost), left
    k = len(sample.indices)
    residual, rounded = _rows_of_restarts(solution, i, j, ridge, sample)
    scale = norm_safety(k, solution.n) * math.sqrt(solution.n / max(k, 1))
    product = scale * np.linalg.norm(residual, axis=0) + floor
    storage = sample.systematic * size
    if rounded is not None:
        storage = storage + scale * np.linalg.norm(rounded, axis=0) * independent_share(solution.n)
    return Residuals(krylov, product, storage, lost), left
