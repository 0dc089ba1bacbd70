"""The gain: how much a residual of the training dynamics can change a prediction.

The gain is `int_0^s sup_l sqrt(l) |propagator(l, x)| dx`. Multiplied by `sqrt(T_**)` and the largest residual, it bounds the
error of a mean (see `bounds.py`). Rigorous forms use only that the kernel is positive semi-definite. Other forms use its
smallest eigenvalue, of which only a Ritz value is known, which is never below it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ntkpipe.dynamics.filters import GradientDescent, Momentum, SpectralFilter

RIGOROUS = "rigorous"
ESTIMATE = "estimate"
# The prediction of least norm among those that fit all directions which the kernel resolves. Nothing bounds the other directions.
MINIMUM_NORM = "minimum_norm"
# An estimate replaces a rigorous gain only if it is smaller by this factor. Otherwise the proven bound is preferred.
PREFERENCE = 10.0


class Gain(NamedTuple):
    """Error per unit of residual, and whether it is `rigorous` or an `estimate`."""

    value: float
    kind: str


def gain_at(spectral_filter: SpectralFilter, time: float, ridge: float, smallest: float, largest: float) -> Gain:
    """The gain at any time. Arguments are those of `time_gain`."""
    if math.isinf(time):
        return final_gain(ridge, smallest)
    return time_gain(spectral_filter, time, ridge, smallest, largest)


def time_gain(spectral_filter: SpectralFilter, time: float, ridge: float, smallest: float, largest: float) -> Gain:
    """The gain at a finite time.

    Args:
        spectral_filter: the training dynamics.
        time: time in steps.
        ridge: absolute ridge.
        smallest: smallest Ritz value of the kernel without ridge.
        largest: largest Ritz value of the kernel without ridge.
    """
    if isinstance(spectral_filter, GradientDescent):
        return _descent_gain(spectral_filter, time, ridge, smallest, largest)
    if isinstance(spectral_filter, Momentum):
        # The residual oscillates in time, so its maximum over a grid of times is not a rigorous bound.
        return Gain(float(momentum_gains(spectral_filter, np.array([time]), smallest + ridge)[0]), ESTIMATE)
    return _choose(_flow(spectral_filter.scaled_time(time), ridge), _flow_floor(smallest + ridge))


def final_gain(ridge: float, smallest: float) -> Gain:
    """The gain at `t = inf`, where only the final residual matters: `sup_l sqrt(l) / (l + ridge)`.

    It is `1 / (2 sqrt(ridge))` over all `l >= 0`, and `sqrt(l_min) / (l_min + ridge)` if the smallest eigenvalue
    exceeds the ridge.
    """
    rigorous = 0.5 / math.sqrt(ridge) if ridge > 0 else math.inf
    estimate = math.sqrt(smallest) / (smallest + ridge) if smallest > ridge else rigorous
    return _choose(rigorous, estimate)


def _choose(rigorous: float, estimate: float) -> Gain:
    if math.isinf(rigorous) and math.isinf(estimate):
        return Gain(math.inf, ESTIMATE)  # no finite bound is known
    if rigorous > PREFERENCE * estimate or (math.isinf(rigorous) and not math.isinf(estimate)):
        return Gain(estimate, ESTIMATE)
    return Gain(rigorous, RIGOROUS)


def _flow(s: float, ridge: float) -> float:
    """`int_0^s exp(-ridge x) / sqrt(2 e x) dx`, because `sqrt(l) exp(-l x) <= 1 / sqrt(2 e x)`."""
    if ridge * s < 1e-8:
        return math.sqrt(2 * s / math.e)
    return math.sqrt(math.pi / (2 * math.e * ridge)) * math.erf(math.sqrt(ridge * s))


def _flow_floor(smallest: float) -> float:
    """The integral of `_flow` to infinity for `l >= smallest`. Each side of `x = 1 / (2 smallest)` contributes half."""
    return 2.0 / math.sqrt(math.e * smallest) if smallest > 0 else math.inf


def _descent_gain(f: GradientDescent, time: float, ridge: float, smallest: float, largest: float) -> Gain:
    """`eta sum_{j < t} sup_l sqrt(l) |1 - eta l|^j`, `eta = rate / (n c)`.

    For `eta l <= 1` every term except the first is at most that of the flow at `x = eta j`. This is a decreasing function, so
    the sum is at most the integral of the flow. For `eta l > 1` the terms are at most `sqrt(l_max) (eta l_max - 1)^j`.
    """
    if time == 0:
        return Gain(0.0, RIGOROUS)
    eta = f.scaled_time(1)
    q = eta * (largest + ridge)
    flow = _choose(_flow(eta * max(time - 1, 0), ridge), _flow_floor(smallest + ridge))
    first = eta * math.sqrt(largest)
    if q <= 1:
        return Gain(flow.value + first, flow.kind)
    ratio = q - 1
    exponent = time * math.log(ratio) if ratio > 0 else -math.inf
    if exponent > 300:
        return Gain(math.inf, ESTIMATE)
    total = time if abs(ratio - 1) < 1e-12 else math.expm1(exponent) / (ratio - 1)
    # Near q = 1 the largest Ritz value decides which case holds. It is accurate to rounding, but this is not proven.
    return Gain(flow.value + first * max(total, 1.0), ESTIMATE)


def momentum_gains(f: Momentum, times: np.ndarray, smallest: float = 0.0) -> np.ndarray:
    """The gain of `e'' = -2 gamma e' - a e + r / (n c)`: `int_0^tau sup_a sqrt(a) |G(a, x)| dx / sqrt(n c)`.

    With `z = gamma x`, oscillating modes have `sqrt(a) |G| <= (1 + z) exp(-z)`, from `|sin(w x)| / w <= min(x, 1 / w)`.
    Overdamped ones, with `y = 1 - kappa / gamma` in (0, 1], have
    `sqrt(a) |G| <= sqrt(2 y) z exp(-y z) / (1 + z (1 - y))`, from `sinh(v) / v <= exp(v) / (1 + v)`. This is at most
    `z / (1 + z / 2)` times the maximum of `sqrt(2 y) exp(-y z)` for `y <= 1/2`, and at most `sqrt(2) z exp(-z / 2)` for `y > 1/2`.

    Args:
        f: the filter.
        times: (k,) finite times in steps.
        smallest: lower bound of the eigenvalues, ridge included; 0 if unknown.

    Returns:
        (k,), non-decreasing in time.
    """
    unit = f.n * f.c
    ends = f.gamma * math.sqrt(f.learning_rate) * np.asarray(times, dtype=np.float64)
    last = float(ends.max(initial=0.0))
    if last == 0:
        return np.zeros(ends.shape)
    share = min(smallest / (unit * f.gamma**2), 1.0)
    least = share / (1.0 + math.sqrt(1.0 - share))  # 1 - sqrt(1 - share) without cancellation
    z = np.concatenate(([0.0], np.geomspace(min(float(ends[ends > 0].min()), 1.0) * 1e-3, last, 2000)))
    # The envelope of sqrt(2 y) exp(-y z) over y >= least: its peak at y = 1 / (2 z), or its value at the edge.
    peak = np.minimum(np.maximum(0.5 / np.maximum(z, 1e-300), least), 0.5)
    slow = np.sqrt(2 * peak) * np.exp(-peak * z)
    supremum = np.maximum.reduce([(1 + z) * np.exp(-z), slow * z / (1 + z / 2), math.sqrt(2) * z * np.exp(-z / 2)])
    # The trapezoidal rule on 2,000 geometric points has an error below a thousandth. The result is increased by a hundredth.
    integral = np.concatenate(([0.0], np.cumsum(np.diff(z) * (supremum[1:] + supremum[:-1]) / 2))) * 1.01
    return np.interp(ends, z, integral) / (f.gamma * math.sqrt(unit))
