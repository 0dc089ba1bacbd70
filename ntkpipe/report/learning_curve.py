"""Computes learning curves: test error against the number of training points, with a fitted power law."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import chi2, t

from ntkpipe.dynamics.extrapolation import Extrapolated
from ntkpipe.predictions.schema import Predictions

LEAST_SIZES = 3
"""Least number of sizes for a fit. A power law has two unknowns, so it would fit any two sizes exactly."""

LEVEL = 0.95
"""Confidence level of the intervals."""


@dataclass(frozen=True)
class PowerLaw:
    """The power law `error = a * n ** -b + c`, which `fit_power_law` fits.

    Args:
        scale: the scale a.
        exponent: the exponent b.
        exponent_low, exponent_high: interval of b at `LEVEL` over all constants; infinite if nothing bounds b.
        constant: the constant c; 0 unless it differs significantly from 0.
        constant_high: largest constant that also fits.
        deviation: root mean square of `error / fit - 1` over the sizes.
        chance: probability that sampling of test images alone causes such a deviation from the best power law.
    """

    scale: float
    exponent: float
    exponent_low: float
    exponent_high: float
    constant: float
    constant_high: float
    deviation: float
    chance: float

    def at(self, n: np.ndarray) -> np.ndarray:
        """Return the values of the law at the sizes n."""
        return self.scale * np.asarray(n, dtype=np.float64) ** -self.exponent + self.constant

    def text(self) -> str:
        """Return a readable text, such as `0.97 n^-0.132 (exponent -0.140 to -0.124)`, with doubts."""
        law = f"{self.scale:.3g} n^{-self.exponent:.3f}"
        law = law if self.constant == 0 else f"{law} + {self.constant:.3g}"
        known = math.isfinite(self.exponent_low) or math.isfinite(self.exponent_high)
        interval = f"exponent {-self.exponent_high:.3f} to {-self.exponent_low:.3f}" if known else "any exponent"
        return "; ".join([f"{law} ({interval})", *self.doubts()])

    def doubts(self) -> list[str]:
        """Return readable texts on what the sizes do not determine."""
        found = []
        if self.constant == 0 and self.constant_high > _NO_CONSTANT * self.scale:
            found.append(f"with an added constant of up to {self.constant_high:.2g} it fits as well")
        if self.exponent_low <= 0:
            found.append("the errors may not decrease at all")
        if self.chance < _UNLIKELY:
            found.append(
                f"not a power law: deviations of {self.deviation:.1%} exceed the sampling error of the test points"
            )
        return found


# A constant below the first number times the scale counts as 0. A law with a chance below the second number is doubted.
_NO_CONSTANT, _UNLIKELY = 1e-6, 1e-3
# Exponents that are tried. Larger exponents cannot be distinguished from the last one at any sizes of interest.
_EXPONENTS = np.concatenate([np.linspace(-1.0, 2.0, 301), np.linspace(2.02, 6.0, 200)])
# Least relative deviation of an error, which exceeds the rounding of a mean.
_FLOOR = 1e-9


@dataclass(frozen=True)
class Predicted:
    """Squared errors that theory predicts from the spectrum of the largest training set.

    Args:
        kernel: name of the kernel.
        ridge: ridge as configured.
        sizes: (s,) numbers of training images, below the largest.
        values: (s,) mean squared errors on new images.
        errors: (s,) standard errors due to random probes.
        sample: number of images of the largest training set.
        further: extrapolated errors for more training images than there are; empty if too few errors are known.
    """

    kernel: str
    ridge: float
    sizes: np.ndarray
    values: np.ndarray
    errors: np.ndarray
    sample: int
    further: tuple[Extrapolated, ...] = ()


@dataclass(frozen=True)
class Curve:
    """One kernel, ridge and choice of time over all sizes.

    Args:
        kernel: name of the kernel.
        ridge: ridge as configured.
        point: `inf` (training to convergence), `best` (the time with the least error on these same test images), or
            `only` (the single finite time of the runs).
        measure: `error` (share of wrong classes) or `mse`.
        sizes: (s,) numbers of training images, ascending.
        times: (s,) training times of the values.
        values: (s,) values of the measure.
        errors: (s,) standard errors over test images.
        fit: the power law; None if there is none.
        why: the reason why there is no power law.
    """

    kernel: str
    ridge: float
    point: str
    measure: str
    sizes: np.ndarray
    times: np.ndarray
    values: np.ndarray
    errors: np.ndarray
    fit: PowerLaw | None
    why: str = ""


def learning_curves(runs: Sequence[tuple[int, Predictions]]) -> list[Curve]:
    """Compute all curves of runs that differ only in their training size.

    Args:
        runs: pairs (number of training images, predictions) with the same test images, kernels and ridges. Times may
            differ.

    Returns:
        The curves, ordered by kernel, ridge, point and measure.

    Raises:
        ValueError: if test images, kernels or ridges differ between runs.
    """
    runs = sorted(runs, key=lambda run: run[0])
    first = runs[0][1]
    for _, one in runs[1:]:
        same = one.kernels == first.kernels and np.array_equal(one.ridges, first.ridges)
        if not same or not np.array_equal(one.test_index, first.test_index):
            raise ValueError("a learning curve needs runs with the same kernels, ridges and test points")
    measures = ("error", "mse") if first.is_classification else ("mse",)
    points = ["inf"] if all(math.isinf(one.times[-1]) for _, one in runs) else []
    if any(len(one.times) > 1 for _, one in runs):
        points.append("best")
    points = points or ["only"]
    curves = []
    for k, r in np.ndindex(len(first.kernels), len(first.ridges)):
        for point in points:
            for measure in measures:
                curves.append(_curve(runs, k, r, point, measure))
    return curves


def _curve(runs: Sequence[tuple[int, Predictions]], k: int, r: int, point: str, measure: str) -> Curve:
    times, losses = [], []
    for _, one in runs:
        every = _losses(one, measure, k, r)  # (T, p)
        t = len(every) - 1 if point != "best" else int(np.argmin(np.nan_to_num(every.mean(axis=1), nan=math.inf)))
        times.append(float(one.times[t]))
        losses.append(every[t])
    found = np.stack(losses)
    sizes = np.array([n for n, _ in runs])
    values, p = found.mean(axis=1), found.shape[1]
    errors = found.std(axis=1, ddof=1) / math.sqrt(p) if p > 1 else np.full(len(sizes), math.nan)
    fit, why = fit_power_law(sizes, found)
    first = runs[0][1]
    name, ridge = first.kernels[k], float(first.ridges[r])
    return Curve(name, ridge, point, measure, sizes, np.array(times), values, errors, fit, why)


def _losses(predictions: Predictions, measure: str, k: int, r: int) -> np.ndarray:
    """Return the loss of every test point at every time, (T, p)."""
    mean = predictions.mean[k, :, r]
    if measure == "mse":
        return ((mean - predictions.target) ** 2).mean(axis=-1)
    assert predictions.label is not None
    return (mean.argmax(axis=-1) != predictions.label).astype(np.float64)


def fit_power_law(sizes: np.ndarray, losses: np.ndarray) -> tuple[PowerLaw | None, str]:
    """Fit a power law by generalised least squares, with intervals from the profile likelihood.

    The errors of different sizes are correlated, because their test points are the same. Their covariance is estimated
    from the losses over the test points. If no law fits within this covariance, a deviation of the same relative size
    at every size is added, as large as the fit needs.

    For a given exponent the law is linear in scale and constant, and the constant is at least 0. The interval of the
    exponent contains all exponents for which some constant fits, so it covers laws with and without a constant. The
    reported constant is 0 unless 0 is outside the interval of the constant.

    Args:
        sizes: (s,) distinct numbers of training images.
        losses: (s, p) losses of the test points.

    Returns:
        The law and an empty text, or None and the reason why there is no law.
    """
    count, p = losses.shape
    if count < LEAST_SIZES:
        return None, f"a power law needs at least {LEAST_SIZES} sizes, and there are {count}"
    values = losses.mean(axis=1)
    if not np.isfinite(values).all() or (values <= 0).any():
        return None, "an error is 0 or not finite"
    covariance = np.atleast_2d(np.cov(losses)) / p if p > 1 else np.zeros((count, count))
    # The variance of one image more or less is added, with the typical loss of an image that contributes. If no image
    # changes between two sizes, the sample covariance alone would say that their difference is exactly known.
    covariance += np.diag(((losses**2).mean(axis=1) / values / p) ** 2) if np.ptp(losses, axis=1).any() else 0.0
    free = count - 3
    fit = _Profile(sizes, values, covariance, _FLOOR)
    chance = float(chi2.sf(fit.best[0], free)) if free else 1.0
    room = float(chi2.ppf(LEVEL, 1))
    if free and fit.best[0] > free:
        # The residuals show how much the errors vary for other reasons than the sampling of test points.
        def excess(log_deviation: float) -> float:
            return _Profile(sizes, values, covariance, math.exp(log_deviation)).best[0] - free

        fit = _Profile(sizes, values, covariance, math.exp(_root(excess, math.log(_FLOOR), math.log(10.0))))
        room = float(t.ppf((1 + LEVEL) / 2, free)) ** 2
    least, exponent = fit.best
    low, high = fit.interval(least + room)
    plain_squares, plain = fit.without_constant
    told = plain_squares > least + room
    exponent = exponent if told else plain
    scale, constant = fit.line(exponent, constant=told)
    fitted = scale * np.exp(-exponent * (fit.n - fit.centre)) + constant
    return PowerLaw(
        float(scale * math.exp(exponent * fit.centre)),
        float(exponent),
        low,
        high,
        float(constant),
        fit.largest_constant(least + room),
        float(np.sqrt(np.mean((values / fitted - 1.0) ** 2))),
        chance,
    ), ""


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Return a root of the function between two ends at which its signs differ."""
    return float(cast("float", brentq(function, low, high)))


class _Profile:
    """Sums of squared residuals in units of their variance, as a function of the exponent.

    Args:
        sizes: (s,) numbers of training images.
        values: (s,) errors.
        covariance: (s, s) covariance of the errors.
        deviation: additional independent deviation of every error, relative to the error.
    """

    def __init__(self, sizes: np.ndarray, values: np.ndarray, covariance: np.ndarray, deviation: float) -> None:
        self.n = np.log(np.asarray(sizes, dtype=np.float64))
        self.centre = float(self.n.mean())
        whole = covariance + np.diag((deviation * values) ** 2)
        self._root = np.linalg.inv(np.linalg.cholesky(whole))
        self._y = self._root @ values
        self._flat = self._root.sum(axis=1)
        self._highest = float(values.min())

    def _squares(self, exponents: np.ndarray, constant: float | None = None) -> np.ndarray:
        """Return the sum of squares of each exponent, (b,).

        It is taken at the best scale, and at the best constant if none is given. Neither is below 0.
        """
        powers = np.exp(-np.multiply.outer(exponents, self.n - self.centre)) @ self._root.T  # (b, s)
        y = self._y - (0.0 if constant is None else constant) * self._flat
        own = (powers * powers).sum(axis=1)
        along = powers @ y / own
        alone = y - np.maximum(along, 0.0)[:, None] * powers
        left = (alone * alone).sum(axis=1)
        if constant is not None:
            return left
        # The part along the powers is removed from data and constant. The constant then reduces the rest.
        shared = powers @ self._flat / own
        rest = self._flat - shared[:, None] * powers
        size, flat = (rest * rest).sum(axis=1), float(self._flat @ self._flat)
        with np.errstate(divide="ignore", invalid="ignore"):
            best = np.where(size > 1e-14 * flat, rest @ y / size, 0.0)
        both = y - along[:, None] * powers - best[:, None] * rest
        level = y - max(float(self._flat @ y) / flat, 0.0) * self._flat
        inside = (best >= 0) & (along - best * shared >= 0)
        return np.where(inside, (both * both).sum(axis=1), np.minimum(left, level @ level))

    def _least(self, constant: float | None) -> tuple[float, float]:
        every = self._squares(_EXPONENTS, constant)
        at = int(np.argmin(every))
        bounds = _EXPONENTS[max(at - 1, 0)], _EXPONENTS[min(at + 1, len(_EXPONENTS) - 1)]
        found = minimize_scalar(
            lambda b: float(self._squares(np.array([b]), constant)[0]),
            bounds=bounds,
            method="bounded",
            options={"xatol": 1e-11},
        )
        return min((float(found.fun), float(found.x)), (float(every[at]), float(_EXPONENTS[at])))

    @cached_property
    def best(self) -> tuple[float, float]:
        """The least sum of squares and its exponent."""
        return self._least(None)

    @cached_property
    def without_constant(self) -> tuple[float, float]:
        """The least sum of squares of laws without a constant, and its exponent."""
        return self._least(0.0)

    def line(self, exponent: float, *, constant: bool) -> tuple[float, float]:
        """Return the best scale, at the centre of the sizes, and the best constant of an exponent."""
        power = self._root @ np.exp(-exponent * (self.n - self.centre))
        columns = np.stack([power, self._flat], axis=1) if constant else power[:, None]
        found = np.linalg.lstsq(columns, self._y, rcond=None)[0]
        return float(found[0]), float(found[1]) if constant else 0.0

    def interval(self, most: float) -> tuple[float, float]:
        """Return the interval of exponents whose sum of squares is at most `most`."""

        def over(b: float) -> float:
            return float(self._squares(np.array([b]))[0]) - most

        best = self.best[1]
        below = _EXPONENTS[best > _EXPONENTS][::-1]
        above = _EXPONENTS[best < _EXPONENTS]
        low = next((b for b in below if over(b) > 0), None)
        high = next((b for b in above if over(b) > 0), None)
        return (
            -math.inf if low is None else _root(over, float(low), best),
            math.inf if high is None else _root(over, best, float(high)),
        )

    def largest_constant(self, most: float) -> float:
        """Return the largest constant for which the sum of squares of some exponent is at most `most`."""

        def over(constant: float) -> float:
            return self._least(constant)[0] - most

        tried = self._highest * np.linspace(0.0, 1.0, 41)
        fits = [c for c in tried if over(c) <= 0]
        if not fits or fits[-1] == tried[-1]:
            return float(tried[-1]) if fits else self._constant_between(over)
        return _root(over, float(fits[-1]), float(fits[-1] + tried[1]))

    def _constant_between(self, over: Callable[[float], float]) -> float:
        """Return the upper end of an interval of constants that is narrower than the spacing of the tried constants."""
        best = self.line(self.best[1], constant=True)[1]
        if best <= 0 or over(best) > 0:
            return max(best, 0.0)
        return _root(over, best, min(best + self._highest / 40, self._highest))
