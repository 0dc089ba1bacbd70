"""Test error against the number of training images, with the power law that fits it: numbers in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ntkpipe.predictions.schema import Predictions

LEAST_SIZES = 3
"""A power law has two unknowns: two sizes fit any."""

# A constant is fitted besides where there are sizes left to tell it from noise.
_SIZES_FOR_CONSTANT = 5
_REPLICATES, _SEED = 500, 0
# Constants that are tried, as shares of the smallest error: the best of them is within a percent of it.
_CONSTANTS = np.linspace(0.0, 0.99, 100)


@dataclass(frozen=True)
class PowerLaw:
    """`error = scale * n ** -exponent + constant`.

    Args:
        scale: a.
        exponent: b.
        exponent_error: standard error of b, by bootstrap over test images: the training images are the same in each replicate.
        constant: c; 0 unless the sizes tell it from 0.
        deviation: root mean square of `log(error) - log(fit)` over the sizes.
    """

    scale: float
    exponent: float
    exponent_error: float
    constant: float
    deviation: float

    def at(self, n: np.ndarray) -> np.ndarray:
        """The law at sizes n."""
        return self.scale * np.asarray(n, dtype=np.float64) ** -self.exponent + self.constant

    def text(self) -> str:
        """For people: `0.97 n^-0.132 ± 0.004`."""
        law = f"{self.scale:.3g} n^-{self.exponent:.3f} ± {self.exponent_error:.3f}"
        return law if self.constant == 0 else f"{law} + {self.constant:.3g}"


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
            raise ValueError("a learning curve needs runs of the same kernels, ridges and test images")
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
    """(T, p) loss of every test image."""
    mean = predictions.mean[k, :, r]
    if measure == "mse":
        return ((mean - predictions.target) ** 2).mean(axis=-1)
    assert predictions.label is not None
    return (mean.argmax(axis=-1) != predictions.label).astype(np.float64)


def fit_power_law(sizes: np.ndarray, losses: np.ndarray) -> tuple[PowerLaw | None, str]:
    """Least squares in logarithms, and a standard error by resampling test images, the same ones at every size.

    A constant is added from five sizes on if that lowers Akaike's criterion (with its correction for few points).

    Args:
        sizes: (s,) training images, distinct.
        losses: (s, p) of every test image.

    Returns:
        The law, or None and the reason.
    """
    if len(sizes) < LEAST_SIZES:
        return None, f"a power law needs at least {LEAST_SIZES} sizes, here are {len(sizes)}"
    values = losses.mean(axis=1)
    if not np.isfinite(values).all() or (values <= 0).any():
        return None, "an error is 0 or not finite"
    n = np.log(np.asarray(sizes, dtype=np.float64))
    scale, exponent, squares = _lines(n, values[None])
    constant = 0.0
    if len(sizes) >= _SIZES_FOR_CONSTANT:
        shifted = values[None] - _CONSTANTS[:, None] * values.min()
        a, b, left = _lines(n, shifted, np.log(values))
        best = int(np.argmin(left))
        if best > 0 and _akaike(left[best], len(n), 3) < _akaike(squares[0], len(n), 2):
            constant = float(_CONSTANTS[best] * values.min())
            scale, exponent, squares = a[best : best + 1], b[best : best + 1], left[best : best + 1]
    p = losses.shape[1]
    draws = np.random.default_rng(_SEED).multinomial(p, np.full(p, 1 / p), size=_REPLICATES)
    resampled = draws @ losses.T / p
    if constant:
        # The constant is found anew in each replicate: its uncertainty is most of the exponent's.
        shifted = resampled[:, None] - _CONSTANTS[None, :, None] * resampled.min(axis=1)[:, None, None]
        logs = np.log(np.maximum(resampled, 1e-300))
        flat = shifted.reshape(-1, len(n))
        _, b, left = _lines(n, flat, np.repeat(logs, len(_CONSTANTS), axis=0))
        pick = np.argmin(left.reshape(_REPLICATES, -1), axis=1)
        exponents = b.reshape(_REPLICATES, -1)[np.arange(_REPLICATES), pick]
    else:
        usable = (resampled > 0).all(axis=1)
        exponents = _lines(n, resampled[usable])[1]
    error = float(exponents.std(ddof=1)) if len(exponents) > 1 else math.nan
    deviation = math.sqrt(float(squares[0]) / len(n))
    return PowerLaw(float(scale[0]), float(exponent[0]), error, constant, deviation), ""


def _lines(
    n: np.ndarray, values: np.ndarray, logs: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Straight lines through `log(values)` (m, s) over log sizes (s,): scale, exponent, and what is left (m,).

    What is left is measured in the logarithm of the whole error `logs`, where a constant was taken off the values.
    """
    y = np.log(np.maximum(values, 1e-300))
    centred = n - n.mean()
    exponent = -(y @ centred) / (centred @ centred)
    intercept = y.mean(axis=1) + exponent * n.mean()
    line = intercept[:, None] - exponent[:, None] * n
    if logs is None:
        left = ((y - line) ** 2).sum(axis=1)
    else:
        whole = np.exp(line) + (np.exp(logs) - values)
        left = ((np.log(np.maximum(whole, 1e-300)) - logs) ** 2).sum(axis=-1)
    return np.exp(intercept), exponent, left


def _akaike(squares: float, points: int, unknowns: int) -> float:
    """Corrected for few points; the variance of the residuals is an unknown too."""
    k = unknowns + 1
    correction = 2 * k * (k + 1) / (points - k - 1) if points > k + 1 else math.inf
    return points * math.log(max(squares, 1e-300) / points) + 2 * k + correction
