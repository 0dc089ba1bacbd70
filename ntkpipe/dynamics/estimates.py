"""An estimate of the error of each prediction, beside its bound (docs/mathematics.md derives it).

Weights obey `u' = y - A u` but for a disturbance `d`: errors `D u` of the stored tiles, and rounded products. A prediction is then off
by `T_* F d` at most, F the filter. Entries of `d` are independent of `F T_*^T`, so that the standard deviation is the prediction's
*sensitivity* `|F T_*^T|` times the root mean square of a row of `d`. The sensitivity of all test points comes from a few random
vectors z, whose weights `F z` are multiplied with the test tiles along with those of the targets. Rows of `d` are
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
from ntkpipe.dynamics.krylov import KrylovSolution
from ntkpipe.dynamics.residuals import AnySolution, row_residuals
from ntkpipe.dynamics.restarted import RestartedSolution
from ntkpipe.dynamics.sampling import RowSample, TestErrors

SIGMAS = 5.0
"""Standard deviations that an estimate is."""
STATED = 0.99
"""Share of errors that users are told to be at most their estimates: what random problems have borne out (docs/bounds.md)."""
CONFIDENCE = 0.999
"""Share of predictions whose error is at most the estimate: with 8 random vectors a Student distribution of 8 degrees is beyond 5 in
one case of 1,000; errors of the test tiles, which are known better, make it rarer."""
MOVEMENTS = 5.0
"""The error of a truncated space is at most so many times what its last movement leaves, if movements go on to shrink as they did."""
# Of rounding the evaluation, in units of eps (|A| |u| + |b|) for the whole residual, and of a product with a test row.
_EVALUATION, _PRODUCT = 4.0, 2.0
# Steps of a truncated space over which means may move.
_STEPS, _SHARE = 2, 0.08
# Of the largest rounding of float32 products among the test points, which may be all of them.
_LARGEST = 1.25
# Random sums of outputs whose movements are looked at, where there are more than twice so many.
_SUMS = 16
# Rows of a smaller diagonal count as having this share of the mean.
_LEAST_SCALE = 1e-6


@dataclass(frozen=True)
class Disturbance:
    """What disturbs the equation of the weights at every time and ridge; arrays are (T, R, c) unless said otherwise.

    Args:
        row: mean square of an entry of the disturbance, of a row of mean scale (`row_scales`).
        bias: norm of what is systematic in it.
        size: norm of the weights.
        floor: root mean square of the rounding of a product with a test row, in units of `sqrt(T_**)`.
        lost: of directions that are left out, in units of `sqrt(T_**)`; infinite where nothing bounds them.
        growth: (T, R) by how much errors of the tiles may have enlarged the sensitivity; infinite where they may have made the
            smallest eigenvalue.
    """

    row: np.ndarray
    bias: np.ndarray
    size: np.ndarray
    floor: np.ndarray
    lost: np.ndarray
    growth: np.ndarray


def row_scales(diagonal: np.ndarray) -> np.ndarray:
    """(n,) relative sizes of squared errors of rows: entries' errors grow as `sqrt(k(x, x) k(x', x'))`."""
    mean = float(np.mean(diagonal))
    return np.maximum(diagonal / mean, _LEAST_SCALE) if mean > 0 else np.ones(len(diagonal))


def few_rows(sampled: int, total: int) -> float:
    """Factor on standard deviations that come from so few rows: `SIGMAS` of them are exceeded as rarely as stated."""
    if sampled >= total:
        return 1.0
    return max(1.0, float(scipy.special.stdtrit(max(sampled, 1), (1 + CONFIDENCE) / 2)) / SIGMAS)


def growth(noise: float, smallest: float, ridge: float, scaled_time: float) -> float:
    """`1 + |D| / (l_min + ridge - |D|)`, or `1 + |D| s` where that is less: what terms of higher order than the first may add.

    Args:
        noise: norm of the errors of the stored kernel.
        smallest: eigenvalue less the noise; 0 if unknown.
        ridge: absolute.
        scaled_time: `SpectralFilter.scaled_time`.
    """
    if scaled_time == 0:
        return 1.0
    least = max(smallest + ridge, 1.0 / scaled_time)
    return 1.0 + noise / least if least > 0 else math.inf


@dataclass(frozen=True)
class RowFacts:
    """What turns sampled rows into a mean square of all.

    Args:
        scales: (k,) of the sampled rows, see `row_scales`; divided by the number of points that equal each.
        diagonal: mean of the kernel's diagonal.
        total: rows in all.
        noise: norm of the errors of the stored kernel.
        unit: of what its products are rounded by.
    """

    scales: np.ndarray
    diagonal: float
    total: int
    noise: float
    unit: float = EPS

    def growth(self, largest: float, smallest: float, ridge: float, scaled_time: float) -> float:
        """See `growth`: of errors of the entries, and of rounded products, which are as those of entries of this size.

        Args:
            largest: eigenvalue.
            smallest: eigenvalue less the noise.
            ridge: absolute.
            scaled_time: `SpectralFilter.scaled_time`.
        """
        products = 2.0 * self.unit * largest / math.sqrt(self.total)
        return growth(self.noise + products, max(smallest - products, 0.0), ridge, scaled_time)

    def mean_square(self, rows: np.ndarray) -> np.ndarray:
        """(c,) of rows (k, c)."""
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
    """Of a basis or of restarted weights; arguments as of `bounds.error_budget`."""
    shape = (len(times), len(ridges), solution.c)
    row, bias, lost = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    sizes = np.linalg.norm(solution.coordinates(spectral_filter, times, ridges), axis=2)
    target, grown = np.linalg.norm(solution.targets, axis=0), np.ones(shape[:2])
    for i, time in enumerate(times):
        for j, ridge in enumerate(ridges):
            size = sizes[i, j]
            residual, rounded, tail = row_residuals(solution, spectral_filter, time, ridge, sample)
            row[i, j] = facts.mean_square(residual) + _evaluation(facts, solution.largest + ridge, size, target)
            row[i, j] += _entries(facts, sample, size)
            if rounded is not None:
                row[i, j] += facts.mean_square(rounded)
            if isinstance(solution, RestartedSolution):  # no truncated space is left whose means could be compared
                row[i, j] += np.sum(tail**2, axis=0) / solution.n
            bias[i, j] = 0.0 if sample.rounding else sample.systematic * size
            count, left = solution.left_out(spectral_filter, time, ridge)
            if count:
                lost[i, j] = left_out_factor(spectral_filter, time, ridge, solution.largest, left)[0]
            grown[i, j] = facts.growth(solution.largest, solution.smallest, ridge, spectral_filter.scaled_time(time))
            if isinstance(spectral_filter, Momentum) and math.isfinite(time):
                grown[i, j] = math.inf  # its filter oscillates in time, and nothing is derived
    return Disturbance(row, bias, sizes, _PRODUCT * EPS * math.sqrt(solution.largest) * sizes, lost, grown)


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
    """Of solutions at `t = inf` found directly; arguments as of `direct_bounds.direct_budget`."""
    r, _, c = weights.shape
    row, bias, grown = np.zeros((1, r, c)), np.zeros((1, r, c)), np.ones((1, r))
    sizes = np.linalg.norm(weights, axis=1)[None]
    target = np.linalg.norm(targets, axis=0)
    for j, ridge in enumerate(ridges):
        size, rows = sizes[0, j], sample.indices
        residual = targets[rows] - sample.stored @ weights[j] - ridge * weights[j][rows]
        row[0, j] = facts.mean_square(residual) + _evaluation(facts, largest + ridge, size, target)
        row[0, j] += _entries(facts, sample, size)
        if sample.exact is not None:
            row[0, j] += facts.mean_square((sample.stored - sample.exact) @ weights[j])
        bias[0, j] = 0.0 if sample.rounding else sample.systematic * size
        grown[0, j] = facts.growth(largest, smallest, ridge, math.inf)
    floor = _PRODUCT * EPS * math.sqrt(largest) * sizes
    return Disturbance(row, bias, sizes, floor, np.zeros_like(row), grown)


def _evaluation(facts: RowFacts, largest: float, size: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Mean square of a row's rounding where the weights themselves are evaluated."""
    return (_EVALUATION * EPS * (largest * size + target)) ** 2 / facts.total


def _entries(facts: RowFacts, sample: RowSample, size: np.ndarray) -> np.ndarray:
    """Mean square of a row that rounding of the recomputed entries themselves makes."""
    return (sample.rounding * facts.diagonal * size) ** 2


def error_estimate(
    found: Disturbance,
    sensitivity: np.ndarray,
    sample: RowSample,
    tests: TestErrors,
    test_diagonal: np.ndarray,
    mean_diagonal: float,
    movement: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Estimates of the errors of means, (T, R, p, c); infinite where nothing is known.

    Args:
        found: of the weights.
        sensitivity: (T, R, p).
        sample: of the training rows.
        tests: errors of the test rows.
        test_diagonal: (p,) `T_**`.
        mean_diagonal: of the training points.
        movement: (T, R, p, c) what a truncated space may leave out.
    """
    root = np.sqrt(np.maximum(test_diagonal, 0.0))[:, None]  # (p, 1)
    grown = np.where(np.isinf(found.growth), 0.0, found.growth)[:, :, None, None]
    reach = grown * sensitivity[..., None]
    squared = reach**2 * found.row[:, :, None, :]
    spread = np.zeros(len(test_diagonal)) if tests.spread is None else tests.spread
    entries = spread[:, None] ** 2 + sample.rounding**2 * mean_diagonal
    squared = squared + (root**2 * entries) * found.size[:, :, None, :] ** 2
    product = found.floor**2 + (0.0 if tests.product is None else (_LARGEST * tests.product / SIGMAS) ** 2)
    squared = squared + root**2 * product[:, :, None, :]
    fixed = 0.0 if sample.rounding else tests.systematic * found.size
    made = SIGMAS * np.sqrt(squared) + reach * found.bias[:, :, None, :]
    made = made + root * (fixed + found.lost)[:, :, None, :] + movement
    made = np.where(np.isinf(found.growth)[:, :, None, None], np.inf, made)
    return np.nan_to_num(made, nan=np.inf, posinf=np.inf)


def shortened(solution: KrylovSolution, kept: int) -> KrylovSolution | None:
    """The space of its first `kept` vectors alone; None if none is left."""
    rotation = solution.rotation
    if rotation is None or kept <= 0:
        return None
    start = rotation @ solution.targets
    projected = (rotation[:kept] * solution.values) @ rotation[:kept].T
    values, vectors = scipy.linalg.eigh(projected, driver="evd", check_finite=False)
    targets = vectors.T @ start[:kept]
    return replace(solution, basis=solution.basis[:kept], values=values, rotation=vectors, targets=targets)


def is_truncated(solution: AnySolution) -> bool:
    """Whether a space has left something out."""
    return len(solution.tail) > 0 and len(solution.values) > 0


def moved_weights(
    solution: AnySolution, steps: int, spectral_filter: SpectralFilter, times: Sequence[float], ridges: Sequence[float]
) -> np.ndarray | None:
    """What the next steps of a truncated space may still change, in its coordinates: (T, R, m, c).

    That is the change over the last `max(2, 0.08 steps)` steps, times `MOVEMENTS rho / (1 - rho)`, with rho the ratio of the changes'
    norms over these steps and as many before; at least once, at most `MOVEMENTS` times.

    Returns:
        None where nothing is truncated, or too few steps have been made.
    """
    if not isinstance(solution, KrylovSolution) or not is_truncated(solution):
        return None
    m = len(solution.values)
    back = math.ceil(m * max(_STEPS, round(_SHARE * steps)) / max(steps, 1))
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
        gap = np.maximum(first - last, 1e-6 * first)  # movements that grow count as those that hardly shrink
        left = last / np.where(gap > 0, gap, 1.0)  # rho / (1 - rho)
        factor = np.clip(MOVEMENTS * left, 1.0, MOVEMENTS)
    return factor * changed


def _change(
    now: KrylovSolution,
    before: KrylovSolution,
    spectral_filter: SpectralFilter,
    times: Sequence[float],
    ridges: Sequence[float],
) -> np.ndarray:
    """(T, R, m, c), of coordinates in the larger space."""
    changed = now.coordinates(spectral_filter, times, ridges)
    changed[:, :, : len(before.values)] -= before.coordinates(spectral_filter, times, ridges)
    return changed


def fewer_outputs(moved: np.ndarray) -> np.ndarray:
    """(T, R, m, k) of changes (T, R, m, c): themselves, or of many outputs random sums, whose mean square is that over the outputs."""
    c = moved.shape[3]
    if c <= 2 * _SUMS:
        return moved
    signs = np.random.default_rng(43).choice([-1.0, 1.0], size=(c, _SUMS)) / math.sqrt(c)
    return moved @ signs


def movement_of(means: np.ndarray, c: int) -> np.ndarray:
    """(T, R, p, c) from means (T, R, p, k) by `fewer_outputs`: a point's own movement, or the root mean square over the points where
    that is more. Of random sums it is one for all outputs, (T, R, p, 1).
    """
    if means.shape[3] != c:
        means = np.sqrt(np.mean(means**2, axis=3, keepdims=True))
    return np.maximum(np.abs(means), np.sqrt(np.mean(means**2, axis=2, keepdims=True)))
