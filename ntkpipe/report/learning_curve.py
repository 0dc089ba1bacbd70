"""Test error against the number of training points, with the power law that fits it: numbers in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import chi2, t

from ntkpipe.predictions.schema import Predictions

LEAST_SIZES = 3
"""A power law has two unknowns: two sizes fit any."""

LEVEL = 0.95
"""Of the intervals."""


@dataclass(frozen=True)
class PowerLaw:
    """`error = scale * n ** -exponent + constant`, see `fit_power_law`.

    Args:
        scale: a.
        exponent: b.
        exponent_low, exponent_high: interval of b at `LEVEL`, whatever the constant is; infinite where nothing bounds b.
        constant: c; 0 unless the sizes tell it from 0.
        constant_high: up to which constants fit as well.
        deviation: root mean square of `error / fit - 1` over the sizes.
        chance: that errors of test images alone make the errors deviate so much from any power law.
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
        """The law at sizes n."""
        return self.scale * np.asarray(n, dtype=np.float64) ** -self.exponent + self.constant

    def text(self) -> str:
        """For people: `0.97 n^-0.132 (0.124 to 0.140)`, and what is not known."""
        law = f"{self.scale:.3g} n^-{self.exponent:.3f} ({self.exponent_low:.3f} to {self.exponent_high:.3f})"
        law = law if self.constant == 0 else f"{law} + {self.constant:.3g}"
        return "; ".join([law, *self.doubts()])

    def doubts(self) -> list[str]:
        """What the sizes leave open, for people."""
        found = []
        if self.constant == 0 and self.constant_high > _NO_CONSTANT * self.scale:
            found.append(f"a constant up to {self.constant_high:.2g} fits as well")
        if self.exponent_low <= 0:
            found.append("no decay is certain")
        if self.chance < _UNLIKELY:
            found.append(f"not a power law: it is off by {self.deviation:.1%}, more than the test points explain")
        return found


# Below this share of the scale a constant is none; below this chance a law is doubted.
_NO_CONSTANT, _UNLIKELY = 1e-6, 1e-3
# Exponents that are looked at; values beyond the last cannot be told from it at any sizes of interest.
_EXPONENTS = np.concatenate([np.linspace(-1.0, 2.0, 301), np.linspace(2.02, 6.0, 200)])
# Relative deviations that are no rounding of a mean.
_FLOOR = 1e-9


@dataclass(frozen=True)
class Predicted:
    """Squared errors that theory predicts from the spectrum of the largest training set.

    Args:
        kernel: its name.
        ridge: as configured.
        sizes: (s,) training images, below the largest.
        values: (s,) mean squared error on new images.
        errors: (s,) standard errors, of random probes.
        sample: images of the largest training set.
    """

    kernel: str
    ridge: float
    sizes: np.ndarray
    values: np.ndarray
    errors: np.ndarray
    sample: int


@dataclass(frozen=True)
class Curve:
    """One kernel, ridge and choice of time over all sizes.

    Args:
        kernel: its name.
        ridge: as configured.
        point: `inf` (trained to convergence), `best` (the time with the least error, by these same test images), or `only`, of
            runs with one finite time.
        measure: `error` (share of wrong classes) or `mse`.
        sizes: (s,) training images, ascending.
        times: (s,) training times that were taken.
        values: (s,) the measure.
        errors: (s,) standard errors, over test images.
        fit: the power law; None where `why` says why there is none.
        why: reason for people.
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
    """All curves of runs that differ in their training size alone.

    Args:
        runs: (training images, predictions), of the same test images, kernels and ridges; times may differ.

    Returns:
        By kernel, ridge, point and measure.

    Raises:
        ValueError: if their test images, kernels or ridges differ.
    """
    runs = sorted(runs, key=lambda run: run[0])
    first = runs[0][1]
    for _, one in runs[1:]:
        same = one.kernels == first.kernels and np.array_equal(one.ridges, first.ridges)
        if not same or not np.array_equal(one.test_index, first.test_index):
            raise ValueError("a learning curve needs runs of the same kernels, ridges and test points")
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
    """(T, p) loss of every test point."""
    mean = predictions.mean[k, :, r]
    if measure == "mse":
        return ((mean - predictions.target) ** 2).mean(axis=-1)
    assert predictions.label is not None
    return (mean.argmax(axis=-1) != predictions.label).astype(np.float64)


def fit_power_law(sizes: np.ndarray, losses: np.ndarray) -> tuple[PowerLaw | None, str]:
    """The law by generalised least squares, and intervals by the profile of the likelihood.

    The errors of the sizes are correlated, because their test points are the same: their covariance is that of the losses over
    the images. Where no law fits within it, a deviation of equal relative size at every size is added, as large as the fit asks
    for. For a given exponent the law is linear in scale and constant, and the constant is at least 0; the interval of the
    exponent has all for which some constant fits, so that it covers laws with and without one. The constant that is reported is
    0 unless 0 is outside its own interval.

    Args:
        sizes: (s,) training images, distinct.
        losses: (s, p) of every test point.

    Returns:
        The law, or None and the reason.
    """
    count, p = losses.shape
    if count < LEAST_SIZES:
        return None, f"a power law needs at least {LEAST_SIZES} sizes, here are {count}"
    values = losses.mean(axis=1)
    if not np.isfinite(values).all() or (values <= 0).any():
        return None, "an error is 0 or not finite"
    covariance = np.atleast_2d(np.cov(losses)) / p if p > 1 else np.zeros((count, count))
    # One image more or less, of the loss that it has where it counts: of sizes between which no image changes sides the
    # covariance of a sample says that they differ by nothing, for sure.
    covariance += np.diag(((losses**2).mean(axis=1) / values / p) ** 2) if np.ptp(losses, axis=1).any() else 0.0
    free = count - 3
    fit = _Profile(sizes, values, covariance, _FLOOR)
    chance = float(chi2.sf(fit.best[0], free)) if free else 1.0
    room = float(chi2.ppf(LEVEL, 1))
    if free and fit.best[0] > free:
        # Whatever else moves the errors is seen in what is left over.
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
    """Between ends of unlike signs."""
    return float(cast("float", brentq(function, low, high)))


class _Profile:
    """Squares that are left over, in units of their variance, for every exponent.

    Args:
        sizes: (s,).
        values: (s,) errors.
        covariance: (s, s) of these.
        deviation: relative, besides, of every error.
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
        """Of each exponent, at its best scale; and its best constant, if none is given. Neither is below 0."""
        powers = np.exp(-np.multiply.outer(exponents, self.n - self.centre)) @ self._root.T  # (b, s)
        y = self._y - (0.0 if constant is None else constant) * self._flat
        own = (powers * powers).sum(axis=1)
        along = powers @ y / own
        alone = y - np.maximum(along, 0.0)[:, None] * powers
        left = (alone * alone).sum(axis=1)
        if constant is not None:
            return left
        # What the constant takes off the rest, after the part along the powers is taken out of both.
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
        """Least squares and their exponent."""
        return self._least(None)

    @cached_property
    def without_constant(self) -> tuple[float, float]:
        """Likewise of laws without a constant."""
        return self._least(0.0)

    def line(self, exponent: float, *, constant: bool) -> tuple[float, float]:
        """Scale, at the centre of the sizes, and constant."""
        power = self._root @ np.exp(-exponent * (self.n - self.centre))
        columns = np.stack([power, self._flat], axis=1) if constant else power[:, None]
        found = np.linalg.lstsq(columns, self._y, rcond=None)[0]
        return float(found[0]), float(found[1]) if constant else 0.0

    def interval(self, most: float) -> tuple[float, float]:
        """Exponents whose squares are at most so many."""

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
        """Up to which constants some exponent has at most so many squares."""

        def over(constant: float) -> float:
            return self._least(constant)[0] - most

        tried = self._highest * np.linspace(0.0, 1.0, 41)
        fits = [c for c in tried if over(c) <= 0]
        if not fits or fits[-1] == tried[-1]:
            return float(tried[-1]) if fits else self._constant_between(over)
        return _root(over, float(fits[-1]), float(fits[-1] + tried[1]))

    def _constant_between(self, over: Callable[[float], float]) -> float:
        """The end of an interval that is narrower than the constants that were tried."""
        best = self.line(self.best[1], constant=True)[1]
        if best <= 0 or over(best) > 0:
            return max(best, 0.0)
        return _root(over, best, min(best + self._highest / 40, self._highest))
