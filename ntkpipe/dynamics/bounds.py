"""Error bounds of predictions.

The kernel is positive semi-definite on training and test images together, so `|T_* e| <= sqrt(T_**) |T^(1/2) e|`
for an error e of the dual weights. Approximate weights u(s) satisfy the flow `u' = b - A u` (A = T + ridge) up to a
residual r(s). Therefore `e(s) = int exp(-A (s - x)) r(x) dx` and

    |error of a mean| <= sqrt(T_**) * gain(s) * max_{x <= s} |r(x)|,
    gain(s) = int_0^s sup_l sqrt(l) exp(-(l + ridge) x) dx.

The truncated Krylov space, rounded products and rounded tiles each cause such a residual. So they share the gain, and their bounds
add up. `gains.py` derives the gain for every filter. Bounds are returned as factors of `sqrt(T_**)`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from ntkpipe.dynamics.filters import EPS, Momentum, SpectralFilter
from ntkpipe.dynamics.gains import MINIMUM_NORM, RIGOROUS, Gain, final_gain, gain_at, momentum_gains, time_gain
from ntkpipe.dynamics.krylov import KrylovSolution
from ntkpipe.dynamics.residuals import ROUNDING, AnySolution, Residuals, residuals_at
from ntkpipe.dynamics.restarted import RestartedSolution
from ntkpipe.dynamics.sampling import RowSample, TestErrors
from ntkpipe.linalg.rounded_basis import along

# Safety factor of bounds that use a Ritz value twice in place of the smallest eigenvalue.
ENERGY_SAFETY = 8.0
# Number of times per decade at which the residual is evaluated to find its maximum.
GRID_PER_DECADE = 8


@dataclass(frozen=True)
class ErrorBudget:
    """Bounds on the error of every mean by origin, each (T, R, c) and a factor of `sqrt(T_**)`.

    Args:
        krylov: error of the truncated Krylov space, 0 for dense solutions. It includes null directions that are left out, for which it is
            infinite at `t = inf` without ridge.
        product: error of rounded products with the stored matrix and of the projected problem; at least a few units of float64
            rounding.
        storage_train: error of the stored train-train tiles. Rounding errors are assumed to be independent between entries
            (`sampling.INDEPENDENT`), and systematic errors are not.
        storage_test: error of the stored test-train tiles, for any signs of their rounding errors, and of their product.
        kind: (T, R) of str. `rigorous`: gain and residual need only the positive semi-definiteness of the kernel,
            up to the grid of times. `estimate`: they use the smallest Ritz value, which is never below the
            smallest eigenvalue, or an oscillating residual. Far from convergence (condition 1e8, 3 steps, errors of
            600) such a bound was half the error. The sampled terms hold up to `MISS_PROBABILITY`. The largest Ritz
            value stands for the largest eigenvalue, which it equals to rounding after a few steps. `minimum_norm`: directions are left
            out that the stored kernel cannot distinguish from null directions. The bound is then infinite, and the prediction is the
            one of least norm that fits all other directions.
    """

    krylov: np.ndarray
    product: np.ndarray
    storage_train: np.ndarray
    storage_test: np.ndarray
    kind: np.ndarray

    @property
    def factor(self) -> np.ndarray:
        """The sum (T, R, c) of all terms."""
        return self.krylov + self.product + self.storage_train + self.storage_test

    def bound(self, test_diagonal: np.ndarray) -> np.ndarray:
        """Bound (T, R, p, c) on `|mean - exact mean|` for images with kernel diagonal `T_**` (p,)."""
        return self.factor[:, :, None, :] * np.sqrt(np.maximum(test_diagonal, 0.0))[None, None, :, None]


def error_budget(
    solution: AnySolution,
    spectral_filter: SpectralFilter,
    times: Sequence[float],
    ridges: Sequence[float],
    *,
    rows: RowSample | None = None,
    tests: TestErrors | None = None,
) -> ErrorBudget:
    """The error bound of `coordinates(...)` at every time and ridge, by origin.

    Args:
        solution: evaluated basis, or restarted weights.
        spectral_filter: the training dynamics.
        times: T times in steps.
        ridges: R absolute ridges.
        rows: sampled training rows. With None, the product error is its float64 floor and the storage error is 0.
        tests: errors of the test-train rows. With None, the error of their product is its float64 floor.

    Returns:
        Arrays (T, R, c).
    """
    shape = (len(times), len(ridges), solution.c)
    krylov, product, storage = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    kind = np.full(shape[:2], RIGOROUS, dtype="<U12")
    for j, ridge in enumerate(ridges):
        for i, (gain, worst, final) in enumerate(_walk(solution, spectral_filter, times, ridge, rows)):
            krylov[i, j] = scaled(gain, worst.krylov) if final is None else final
            product[i, j] = scaled(gain, worst.product)
            storage[i, j] = scaled(gain, worst.storage)
            kind[i, j] = gain.kind
            if solution.left_out(spectral_filter, times[i], ridge)[0]:
                unknown, sure = left_out_factor(spectral_filter, times[i], ridge, solution.largest, worst.left)
                krylov[i, j] += unknown
                kind[i, j] = gain.kind if sure else MINIMUM_NORM
    test = _test_factor(solution, spectral_filter, times, ridges, tests)
    return ErrorBudget(krylov, product, storage, test, kind)


def left_out_factor(
    spectral_filter: SpectralFilter, time: float, ridge: float, largest: float, left: np.ndarray
) -> tuple[np.ndarray, bool]:
    """Bound (c,) on the change of a mean by directions that are left out, and whether it is finite.

    `left` (c,) are the norms of the targets along these directions. Their eigenvalues may be any numbers from zero on, so the gain cannot
    use a smallest eigenvalue. It is infinite at `t = inf` without ridge, but an output without targets there loses nothing.
    """
    gain = gain_at(spectral_filter, time, ridge, 0.0, largest)
    if math.isinf(gain.value):
        return np.where(left > 0, math.inf, 0.0), False
    return gain.value * left, True


def largest_factor(
    solution: AnySolution,
    spectral_filter: SpectralFilter,
    times: Sequence[float],
    ridges: Sequence[float],
    scales: np.ndarray | float = 1.0,
) -> float:
    """The largest Krylov term of `error_budget` over times, ridges and outputs, without directions that are left out.

    Args:
        solution: evaluated basis, or restarted weights.
        spectral_filter: the training dynamics.
        times: T times in steps.
        ridges: R absolute ridges.
        scales: (c,) scales of the outputs, which are the units of the factors.
    """
    factors = krylov_factors(solution, spectral_filter, times, ridges)
    return float(np.max(factors / scales, initial=0.0))


def krylov_factors(
    solution: AnySolution, spectral_filter: SpectralFilter, times: Sequence[float], ridges: Sequence[float]
) -> np.ndarray:
    """The Krylov term (T, R, c) of `error_budget`, without directions that are left out."""
    out = np.zeros((len(times), len(ridges), solution.c))
    for j, ridge in enumerate(ridges):
        for i, (gain, residuals, final) in enumerate(_walk(solution, spectral_filter, times, ridge, None)):
            out[i, j] = scaled(gain, residuals.krylov) if final is None else final
    return out


def is_rounding(
    solution: AnySolution, spectral_filter: SpectralFilter, times: Sequence[float], ridges: Sequence[float]
) -> bool:
    """Whether the residual of the truncated space is at most that of float64 rounding. Further steps then change nothing."""
    for ridge in ridges:
        for gain, residuals, final in _walk(solution, spectral_filter, times, ridge, None):
            # With an infinite gain, the factors do not show which residual is larger, so residuals are compared.
            krylov = residuals.krylov
            if final is not None and 0 < gain.value < math.inf:
                krylov = final / gain.value
            if not (krylov <= residuals.product).all():
                return False
    return True


def scaled(gain: Gain, norms: np.ndarray) -> np.ndarray:
    """The gain times residuals. A residual of zero gives zero, also with an infinite gain."""
    return np.where(norms > 0, gain.value * np.where(norms > 0, norms, 1.0), 0.0)


def _walk(
    solution: AnySolution,
    spectral_filter: SpectralFilter,
    times: Sequence[float],
    ridge: float,
    sample: RowSample | None,
) -> list[tuple[Gain, Residuals, np.ndarray | None]]:
    """For each time: the gain, the largest residuals up to this time, and at t = inf the Krylov factor (None at finite times)."""
    if isinstance(solution, RestartedSolution):
        grid = [t for t in solution.grid if math.isfinite(t)]
    else:
        grid = time_grid(spectral_filter, times, solution.largest)
    history = [residuals_at(solution, spectral_filter, time, ridge, sample)[0] for time in grid]
    out: list[tuple[Gain, Residuals, np.ndarray | None]] = []
    for time in times:
        if math.isinf(time):
            now, tail = residuals_at(solution, spectral_filter, time, ridge, sample)
            gain = final_gain(ridge, solution.smallest) if solution.largest > 0 else Gain(0.0, RIGOROUS)
            out.append((gain, now, _final_factor(solution, ridge, gain, now, tail)))
            continue
        gain = time_gain(spectral_filter, time, ridge, solution.smallest, solution.largest)
        parts = [np.stack([getattr(r, name) for r in history]) for name in ("krylov", "product", "storage", "left")]
        until = np.asarray(grid) <= time
        if isinstance(spectral_filter, Momentum):
            shares = _shares(spectral_filter, np.asarray(grid)[until], solution.smallest + ridge)
            out.append((gain, Residuals(*(_smeared(part[until], shares) for part in parts)), None))
        else:
            out.append((gain, Residuals(*(part[until].max(axis=0) for part in parts)), None))
    return out


def time_grid(spectral_filter: SpectralFilter, times: Sequence[float], largest: float) -> list[float]:
    """The finite times of `times`, and times between them at which the residual is evaluated. Discrete times are whole numbers."""
    asked = sorted({float(t) for t in times if math.isfinite(t)})
    if not asked or asked[-1] == 0 or largest <= 0:
        return asked
    last = asked[-1]
    # Up to a tenth of the time scale of the fastest component, the residual only grows.
    unit = spectral_filter.n * spectral_filter.c / spectral_filter.learning_rate
    first = min(last, 0.1 * unit / largest)
    if isinstance(spectral_filter, Momentum):  # learns as sqrt(l) tau until friction dominates
        first = min(last, 0.1 * math.sqrt(unit / largest))
    between = times_between(first, last)
    try:
        for t in between:
            spectral_filter.check_time(float(t))
    except ValueError:
        between = np.floor(between)
    return sorted({*asked, *(float(t) for t in between if t < last)})


def times_between(first: float, last: float) -> np.ndarray:
    """Return `GRID_PER_DECADE` times a decade from `first` to `last`, both included, for any finite `0 <= first <= last`.

    The quotient of both may overflow, and `first` may have underflowed.
    """
    low, high = (math.log10(max(t, sys.float_info.min)) for t in (first, last))
    exponents = np.linspace(low, high, 2 + math.ceil(GRID_PER_DECADE * (high - low)))
    return np.concatenate([[first], 10.0 ** exponents[1:-1], [last]])


def _shares(spectral_filter: Momentum, grid: np.ndarray, smallest: float) -> np.ndarray:
    """Shares (len(grid),) of the intervals between grid times in the gain at the last time. They sum to 1.

    Friction damps the effect of the first oscillations, during which the residual is largest by orders of magnitude.
    """
    since = grid[-1] - np.concatenate([[0.0], grid])
    gains = momentum_gains(spectral_filter, since, smallest)
    return -np.diff(gains) / gains[0] if gains[0] > 0 else np.zeros(len(grid))


def _smeared(history: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Average of residuals (times, c), weighted with `shares`.

    Each residual is replaced by the largest one within 3 grid times, because oscillations between grid times are not visible.
    """
    padded = np.pad(history, ((3, 3), (0, 0)), mode="edge")
    nearby = np.max([padded[k : k + len(history)] for k in range(7)], axis=0)
    return shares @ nearby


def _final_factor(
    solution: AnySolution, ridge: float, gain: Gain, residuals: Residuals, tail: np.ndarray
) -> np.ndarray:
    """The Krylov factor (c,) at `t = inf`: the smallest of three bounds on `|A^(1/2) error|`."""
    plain = scaled(gain, residuals.krylov) if solution.largest > 0 else np.zeros(solution.c)
    if not len(solution.tail):
        return plain
    rigorous = _radau(solution, ridge, ridge, tail)
    if gain.kind == RIGOROUS:
        return np.minimum(plain, rigorous)
    # After few steps the smallest eigenvalue is inaccurate, and the next two bounds depend on it most. The safety factor suffices for the
    # spectra of the tests.
    least = min(solution.smallest_ritz[0], solution.ceiling) + ridge
    if least <= 0:
        return np.minimum(plain, rigorous)
    energy = np.linalg.norm(solution.targets, axis=0) / math.sqrt(least)  # of the solution: at least that of the error
    estimate = ENERGY_SAFETY * np.minimum(energy, _radau(solution, ridge, least / 2, tail))
    return np.minimum(np.minimum(plain, rigorous), estimate)


def _radau(solution: AnySolution, ridge: float, least: float, tail: np.ndarray) -> np.ndarray:
    """Bound on `|A^(1/2) error|` (c,) at `t = inf` from `A >= least`: the block Gauss-Radau bound `sqrt(rho^T S^-1 rho)`.

    In the coordinates of the completed basis, the energy of the error is the form of the residual rho with the inverse of the Schur
    complement `A22 - C H^-1 C^T`. Here C is the coupling and H the projected matrix with ridge. The Schur complement of `A - least >= 0` is
    `A22 - least - C (H - least)^-1 C^T >= 0`. Therefore the former is at least `S = least (1 + C (H (H - least))^-1 C^T)`. The bound is
    never above `|rho| / sqrt(least)`.
    """
    if least <= 0:
        return np.full(tail.shape[1], math.inf)
    values, cutoff = solution.shifted(ridge)
    # Ritz values within rounding of zero are left out, and small differences to `least` are increased. Both make S smaller and the bound
    # larger.
    kept = values > cutoff
    above = np.maximum(values[kept] - least, cutoff)
    s = least * (np.eye(len(tail)) + (solution.tail[:, kept] / (values[kept] * above)) @ solution.tail[:, kept].T)
    energy = scipy.linalg.solve_triangular(np.linalg.cholesky(s), tail, lower=True)
    return np.linalg.norm(energy, axis=0)


def _test_factor(
    solution: AnySolution,
    spectral_filter: SpectralFilter,
    times: Sequence[float],
    ridges: Sequence[float],
    errors: TestErrors | None,
) -> np.ndarray:
    weights = solution.coordinates(spectral_filter, times, ridges)
    rows = None if errors is None or errors.rows is None else errors.rows
    if rows is not None and isinstance(solution, KrylovSolution):
        rows = along(rows, solution.basis)
    return error_of_test_rows(weights, solution.largest, errors, rows)


def error_of_test_rows(
    weights: np.ndarray, largest: float, errors: TestErrors | None, rows: np.ndarray | None
) -> np.ndarray:
    """Bound (T, R, c) on the errors from the test-train rows and the rounding of their product, for weights (T, R, m, c)."""
    size = np.linalg.norm(weights, axis=2)
    # |T_*| <= sqrt(T_** l_max), and a blocked dot product has rounding errors of a few units of eps |T_*| |u|.
    floor = ROUNDING * EPS * math.sqrt(largest) * size
    if errors is None:
        return floor
    stored = errors.norm * size if rows is None else np.abs(np.matmul(rows, weights)).max(axis=2, initial=0.0)
    product = 0.0 if errors.product is None else errors.product
    return floor + stored + errors.systematic * size + product
