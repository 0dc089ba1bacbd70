"""Estimates of the error of each prediction, in addition to its bound (docs/mathematics.md derives them).

Weights satisfy `u' = y - A u` up to a disturbance `d`: errors `D u` of the stored tiles, and rounded products. The error of a prediction
is then at most `T_* F d` with the filter F. Entries of `d` are independent of `F T_*^T`. So the standard deviation is the
*sensitivity* `|F T_*^T|` of the prediction times the root mean square of a row of `d`. A few random vectors z give the sensitivity of all
test points: their weights `F z` are multiplied with the test tiles together with the weights of the targets. Rows of `d` are
measured on sampled training points, and errors of the test tiles on sampled columns, as for the bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
import scipy.special

from ntkpipe.dynamics.bounds import left_out_factor
from ntkpipe.dynamics.filters import EPS, Momentum, SpectralFilter
from ntkpipe.dynamics.krylov import KrylovSolution, pencil_eigenvectors
from ntkpipe.dynamics.movement import steps_back, still_to_come
from ntkpipe.dynamics.residuals import AnySolution, row_residuals
from ntkpipe.dynamics.restarted import RestartedSolution
from ntkpipe.dynamics.sampling import RowSample, TestErrors

SIGMAS = 5.0
"""Number of standard deviations in an estimate."""
STATED = 0.99
"""Share of errors that the documentation states to be at most their estimates, as tested on random problems (docs/bounds.md)."""
CONFIDENCE = 0.999
"""Share of predictions whose error is at most the estimate in theory. With 8 random vectors, a Student distribution with 8 degrees of
freedom exceeds 5 in one case of 1,000. Errors of the test tiles are known better, so they are exceeded more rarely."""
MOVEMENTS = 2.5
"""Safety factor on the remaining movement of a truncated space, which assumes that movements continue to shrink at the same rate."""
EVALUATION, STOPPING = 0.25, 4.0
"""Rounding errors of evaluating the weights that the sampled rows do not show, in units of eps |A| |u| for the whole residual. Residuals of
these rows in float64 show the rest: over 15 spectra of 10 to 700 rows they were 1.0 to 1.4 times those in 80 bits, which were 0.1 to 0.6
units with Cholesky factors and 0.4 to 2.4 units with eigenvectors. A growing space stops at the second number, because movements have
rounding errors too."""
# A rounded basis V is not orthonormal. This is the norm of `V V^T b - b` in units of eps |b| and of the fourth root of n. Residuals in
# the basis do not show it. For matrices of condition 1e2 to 1e12 LAPACK's eigenvectors had norms of 3.4 eps |b| at n = 8, and 4.7, 8 and
# 10 at n = 20, 100 and 400.
_TARGETS = 2.3
# Relative error that all weights share, in units of eps. With a basis it comes from the norms of the vectors, the time and the filter; for
# direct solutions only from the last sum.
_SHARED, DIRECT = 2.0, 0.5
# Factor on the largest rounding error of float32 products over the test points.
_LARGEST = 1.25
# Least scale of a row, as a share of the mean diagonal.
_LEAST_SCALE = 1e-6


@dataclass(frozen=True)
class Disturbance:
    """The disturbance of the equation of the weights at every time and ridge. Arrays are (T, R, c) unless another shape is given.

    Args:
        row: mean square of an entry of the disturbance, for a row of mean scale (`row_scales`).
        bias: norm of the systematic part of the disturbance.
        size: norm of the weights.
        floor: root mean square of the rounding of a product with a test row, in units of `sqrt(T_**)`.
        lost: error from directions that are left out, in units of `sqrt(T_**)`; infinite if nothing bounds it.
        growth: (T, R) factor by which errors of the tiles may have increased the sensitivity; infinite if they may be as large as the
            smallest eigenvalue.
        shared: relative error of rounding that all weights share, in units of eps.
    """

    row: np.ndarray
    bias: np.ndarray
    size: np.ndarray
    floor: np.ndarray
    lost: np.ndarray
    growth: np.ndarray
    shared: float = _SHARED


def row_scales(diagonal: np.ndarray) -> np.ndarray:
    """Relative sizes (n,) of squared errors of rows. Errors of entries are proportional to `sqrt(k(x, x) k(x', x'))`."""
    mean = float(np.mean(diagonal))
    return np.maximum(diagonal / mean, _LEAST_SCALE) if mean > 0 else np.ones(len(diagonal))


def few_rows(sampled: int, total: int) -> float:
    """Factor on standard deviations from few sampled rows, so that errors exceed `SIGMAS` of them as rarely as `CONFIDENCE` states."""
    if sampled >= total:
        return 1.0
    return max(1.0, float(scipy.special.stdtrit(max(sampled, 1), (1 + CONFIDENCE) / 2)) / SIGMAS)


def growth(noise: float, smallest: float, ridge: float, scaled_time: float) -> float:
    """Factor for terms of higher than first order: `1 + |D| / (l_min + ridge - |D|)`, or `1 + |D| s` if it is smaller.

    Args:
        noise: norm of the errors of the stored kernel.
        smallest: smallest eigenvalue minus the noise; 0 if unknown.
        ridge: absolute.
        scaled_time: `SpectralFilter.scaled_time`.
    """
    if scaled_time == 0:
        return 1.0
    least = max(smallest + ridge, 1.0 / scaled_time)
    return 1.0 + noise / least if least > 0 else math.inf


@dataclass(frozen=True)
class RowFacts:
    """Facts that turn sampled rows into a mean square over all rows.

    Args:
        scales: (k,) scales of the sampled rows (`row_scales`), divided by the number of points that equal each point.
        diagonal: mean of the kernel's diagonal.
        total: number of all rows.
        noise: norm of the errors of the stored kernel.
        unit: machine epsilon of the kernel's products.
        evaluation: `EVALUATION` or `STOPPING`.
    """

    scales: np.ndarray
    diagonal: float
    total: int
    noise: float
    unit: float = EPS
    evaluation: float = EVALUATION

    @property
    def product(self) -> float:
        """Root mean square of the rounding of a sum of `total` float64 products, in units of eps and of both norms.

        Every partial sum is rounded by 0.2 eps of it. Partial sums of random signs make 0.2 in all. Those of one sign grow evenly, so
        that n in a row make `0.2 sqrt(n / 3)`; matrix products add up blocks of 256 of them and more at a time.
        """
        return max(0.2, self.evaluation / 2) + 0.2 * math.sqrt(self.total / 768)

    def growth(self, largest: float, smallest: float, ridge: float, scaled_time: float) -> float:
        """The factor of `growth` for errors of the entries and of rounded products. The latter act like errors of entries.

        Args:
            largest: largest eigenvalue.
            smallest: smallest eigenvalue minus the noise.
            ridge: absolute.
            scaled_time: `SpectralFilter.scaled_time`.
        """
        products = 2.0 * self.unit * largest / math.sqrt(self.total)
        return growth(self.noise + products, max(smallest - products, 0.0), ridge, scaled_time)

    def mean_square(self, rows: np.ndarray) -> np.ndarray:
        """Mean square (c,) of all rows, from sampled rows (k, c)."""
        if not len(rows):
            return np.zeros(rows.shape[1])
        factor = few_rows(len(rows), self.total) ** 2
        return factor * np.mean(rows**2 / self.scales[:, None], axis=0)


def disturbance(
    solution: AnySolution,
    spectral_filter: SpectralFilter,
    times: Sequence[float],
    ridges: Sequence[float],
    sample: RowSample,
    facts: RowFacts,
) -> Disturbance:
    """The disturbance for a basis or for restarted weights. Arguments are those of `bounds.error_budget`."""
    shape = (len(times), len(ridges), solution.c)
    row, bias, lost = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    sizes = np.linalg.norm(solution.coordinates(spectral_filter, times, ridges), axis=2)
    target, grown = np.linalg.norm(solution.targets, axis=0), np.ones(shape[:2])
    for i, time in enumerate(times):
        for j, ridge in enumerate(ridges):
            size = sizes[i, j]
            residual, rounded, tail = row_residuals(solution, spectral_filter, time, ridge, sample)
            row[i, j] = facts.mean_square(residual) + evaluation_rounding(facts, solution.largest + ridge, size, target)
            row[i, j] += (_TARGETS * EPS * target) ** 2 / math.sqrt(facts.total)
            row[i, j] += entry_rounding(facts, sample, size)
            if rounded is not None:
                row[i, j] += facts.mean_square(rounded)
            if isinstance(solution, KrylovSolution) and solution.start_error is not None:
                row[i, j] += solution.start_error**2 / solution.n
            if isinstance(solution, RestartedSolution):  # there is no earlier space to compare means with
                row[i, j] += np.sum(tail**2, axis=0) / solution.n
            bias[i, j] = 0.0 if sample.rounding else sample.systematic * size
            count, left = solution.left_out(spectral_filter, time, ridge)
            if count:
                lost[i, j] = left_out_factor(spectral_filter, time, ridge, solution.largest, left)[0]
            grown[i, j] = facts.growth(solution.largest, solution.smallest, ridge, spectral_filter.scaled_time(time))
            if isinstance(spectral_filter, Momentum) and math.isfinite(time):
                grown[i, j] = math.inf  # no factor is derived for its filter, which oscillates in time
    return Disturbance(row, bias, sizes, facts.product * EPS * math.sqrt(solution.largest) * sizes, lost, grown)


def direct_disturbance(
    weights: np.ndarray,
    targets: np.ndarray,
    ridges: Sequence[float],
    sample: RowSample,
    facts: RowFacts,
    *,
    smallest: float,
    largest: float,
) -> Disturbance:
    """The disturbance for direct solutions at `t = inf`. Arguments are those of `direct_bounds.direct_budget`."""
    r, _, c = weights.shape
    row, bias, grown = np.zeros((1, r, c)), np.zeros((1, r, c)), np.ones((1, r))
    sizes = np.linalg.norm(weights, axis=1)[None]
    target = np.linalg.norm(targets, axis=0)
    for j, ridge in enumerate(ridges):
        size, rows = sizes[0, j], sample.indices
        residual = targets[rows] - sample.stored @ weights[j] - ridge * weights[j][rows]
        row[0, j] = facts.mean_square(residual) + evaluation_rounding(facts, largest + ridge, size, target)
        row[0, j] += entry_rounding(facts, sample, size)
        if sample.exact is not None:
            row[0, j] += facts.mean_square((sample.stored - sample.exact) @ weights[j])
        bias[0, j] = 0.0 if sample.rounding else sample.systematic * size
        grown[0, j] = facts.growth(largest, smallest, ridge, math.inf)
    floor = facts.product * EPS * math.sqrt(largest) * sizes
    return Disturbance(row, bias, sizes, floor, np.zeros_like(row), grown, DIRECT)


def evaluation_rounding(facts: RowFacts, largest: float, size: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Mean square (c,) of the rounding error of a row in the evaluation of the weights that sampled rows do not show."""
    return (facts.evaluation * EPS * (largest * size + target)) ** 2 / facts.total


def entry_rounding(facts: RowFacts, sample: RowSample, size: np.ndarray) -> np.ndarray:
    """Mean square (c,) of the error of a row that rounding of the recomputed entries causes."""
    return (sample.rounding * facts.diagonal * size) ** 2


def error_estimate(
    found: Disturbance,
    sensitivity: np.ndarray,
    sample: RowSample,
    tests: TestErrors,
    test_diagonal: np.ndarray,
    mean_diagonal: float,
    movement: np.ndarray | float = 0.0,
    means: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Estimates (T, R, p, c) of the errors of means; infinite if nothing is known.

    Args:
        found: the disturbance of the weights.
        sensitivity: (T, R, p) sensitivities of the test points.
        sample: sampled training rows.
        tests: errors of the test rows.
        test_diagonal: (p,) `T_**`.
        mean_diagonal: mean diagonal of the training points.
        movement: (T, R, p, c) error of a truncated space.
        means: (T, R, p, c) predictions, which have a relative rounding error.
    """
    root = np.sqrt(np.maximum(test_diagonal, 0.0))[:, None]  # (p, 1)
    grown = np.where(np.isinf(found.growth), 0.0, found.growth)[:, :, None, None]
    reach = grown * sensitivity[..., None]
    squared = reach**2 * found.row[:, :, None, :]
    spread = np.zeros(len(test_diagonal)) if tests.spread is None else tests.spread
    entries = spread[:, None] ** 2 + sample.rounding**2 * mean_diagonal
    squared = squared + (root**2 * entries) * found.size[:, :, None, :] ** 2
    product = found.floor**2 + (0.0 if tests.product is None else (_LARGEST * tests.product / SIGMAS) ** 2)
    shared = found.shared * EPS * np.abs(means)
    squared = squared + root**2 * product[:, :, None, :] + shared**2
    fixed = 0.0 if sample.rounding else tests.systematic * found.size
    # Squares of answers below 1e-150 underflow.
    made = SIGMAS * np.maximum(np.sqrt(squared), shared) + reach * found.bias[:, :, None, :]
    made = made + root * (fixed + found.lost)[:, :, None, :] + movement
    made = np.where(np.isinf(found.growth)[:, :, None, None], np.inf, made)
    return np.nan_to_num(made, nan=np.inf, posinf=np.inf)


def shortened(solution: KrylovSolution, kept: int) -> KrylovSolution | None:
    """The space of the first `kept` vectors; None if there are none, or if the solution has no rotation."""
    rotation = solution.rotation
    if rotation is None or kept <= 0:
        return None
    start = rotation @ solution.targets
    if solution.gram is not None:
        outer = solution.gram @ rotation  # the inverse of the transpose
        gram = solution.gram[:kept, :kept]
        values, vectors = pencil_eigenvectors((outer[:kept] * solution.values) @ outer[:kept].T, gram)
        targets = vectors.T @ (gram @ start[:kept])
        return replace(
            solution, basis=solution.basis[:kept], values=values, rotation=vectors, targets=targets, gram=gram
        )
    projected = (rotation[:kept] * solution.values) @ rotation[:kept].T
    values, vectors = scipy.linalg.eigh(projected, driver="evd", check_finite=False)
    targets = vectors.T @ start[:kept]
    return replace(solution, basis=solution.basis[:kept], values=values, rotation=vectors, targets=targets)


def is_truncated(solution: AnySolution) -> bool:
    """Whether the space is truncated, so that it is not invariant."""
    return len(solution.tail) > 0 and len(solution.values) > 0


def moved_weights(
    solution: AnySolution, steps: int, spectral_filter: SpectralFilter, times: Sequence[float], ridges: Sequence[float]
) -> np.ndarray | None:
    """Estimate (T, R, m, c) of the change by further steps of a truncated space, in its coordinates.

    It is the change over the last `steps_back` steps times the factor of `still_to_come`. The factor uses the norms of this change and of
    the change over the same number of steps before.

    Returns:
        None if the space is not truncated, or has too few steps.
    """
    if not isinstance(solution, KrylovSolution) or not is_truncated(solution):
        return None
    m = len(solution.values)
    back = math.ceil(m * steps_back(steps) / max(steps, 1))
    before = shortened(solution, m - back)
    if before is None:
        return None
    changed = _change(solution, before, spectral_filter, times, ridges)
    factor = np.full((len(times), len(ridges), 1, solution.c), MOVEMENTS)
    if (earlier := shortened(solution, m - 2 * back)) is not None:
        last, first = (
            np.linalg.norm(one, axis=2, keepdims=True)
            for one in (changed, _change(before, earlier, spectral_filter, times, ridges))
        )
        factor = still_to_come(last, first, MOVEMENTS)
    return factor * changed


def _change(
    now: KrylovSolution,
    before: KrylovSolution,
    spectral_filter: SpectralFilter,
    times: Sequence[float],
    ridges: Sequence[float],
) -> np.ndarray:
    """Change (T, R, m, c) of coordinates from the smaller to the larger space."""
    changed = now.coordinates(spectral_filter, times, ridges)
    changed[:, :, : len(before.values)] -= before.coordinates(spectral_filter, times, ridges)
    return changed


def movement_of(means: np.ndarray, c: int) -> np.ndarray:
    """Movements (T, R, p, c) from movements of means (T, R, p, k) of `summed_outputs`.

    They are the larger of the movement of the point itself and the root mean square over all points. For random sums, the outputs share one
    movement: (T, R, p, 1).
    """
    if means.shape[3] != c:
        means = np.sqrt(np.mean(means**2, axis=3, keepdims=True))
    return np.maximum(np.abs(means), np.sqrt(np.mean(means**2, axis=2, keepdims=True)))
