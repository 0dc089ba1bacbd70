"""Steps of explicit integrators for `x' = F(x)` with eigenvalues of the Jacobian on the negative real axis: no system is solved.

Two methods: Dormand and Prince of order 5, which is cheap and accurate as long as steps are below `3 / rho`; and Runge-Kutta-Chebyshev of
order 2 (Sommeijer, Shampine, Verwer, J. Comput. Appl. Math. 88, 1998), stable up to `0.65 s^2 / rho` with s evaluations, which covers long
times with the square root of the evaluations. rho is a bound on the eigenvalues' size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Field = Callable[[np.ndarray], np.ndarray]

# Dormand and Prince, J. Comput. Appl. Math. 6, 1980: rows of a, whose last one are the weights; and those of the error.
_A = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
ACCURATE_STAGES = 6
"""Evaluations of `accurate_step`."""
ACCURATE_REACH = 3.0
"""Its stable step times rho: 3.3 on the real axis, and some room for rounding of rho."""
_DAMPING = 2.0 / 13.0
MOST_STAGES = 250
"""Beyond, rounding inside a step grows with the square of the stages."""


class Stepped(NamedTuple):
    """Outcome of a step: the state, F there, and an estimate of the local error."""

    x: np.ndarray
    slope: np.ndarray
    error: np.ndarray


def accurate_step(field: Field, x: np.ndarray, slope: np.ndarray, h: float) -> Stepped:
    """One step of Dormand and Prince; `slope` is F(x)."""
    slopes = [slope]
    new = x
    for row in _A:
        new = x + h * sum(a * k for a, k in zip(row, slopes, strict=True) if a)
        slopes.append(field(new))
    error = h * sum(e * k for e, k in zip(_E, slopes, strict=True) if e)
    return Stepped(new, slopes[-1], np.asarray(error))


def stages_for(h: float, rho: float) -> int:
    """Evaluations of a Chebyshev step that is stable."""
    return max(2, 1 + math.ceil(math.sqrt(1.54 * h * rho + 1.0)))


def chebyshev_step(field: Field, x: np.ndarray, slope: np.ndarray, h: float, stages: int) -> Stepped:
    """One step of Runge-Kutta-Chebyshev with so many evaluations, the one at its end included."""
    s = stages
    w0 = 1.0 + _DAMPING / s**2
    t, d1, d2 = _chebyshev(w0, s)
    w1 = d1[s] / d2[s]
    b = [0.0] * (s + 1)
    for j in range(2, s + 1):
        b[j] = d2[j] / d1[j] ** 2
    b[0] = b[1] = b[2]
    before, now = x, x + b[1] * w1 * h * slope
    for j in range(2, s + 1):
        mu, nu = 2 * b[j] * w0 / b[j - 1], -b[j] / b[j - 2]
        mu_h = 2 * b[j] * w1 / b[j - 1] * h
        gamma_h = -(1.0 - b[j - 1] * t[j - 1]) * mu_h
        now, before = (1.0 - mu - nu) * x + mu * now + nu * before + mu_h * field(now) + gamma_h * slope, now
    end = field(now)
    return Stepped(now, end, 0.8 * (x - now) + 0.4 * h * (slope + end))


def _chebyshev(w: float, s: int) -> tuple[list[float], list[float], list[float]]:
    """Chebyshev polynomials up to degree s at w, and their first and second derivatives."""
    t, d1, d2 = [1.0, w], [0.0, 1.0], [0.0, 0.0]
    for _ in range(2, s + 1):
        t.append(2 * w * t[-1] - t[-2])
        d1.append(2 * t[-2] + 2 * w * d1[-1] - d1[-2])
        d2.append(4 * d1[-2] + 2 * w * d2[-1] - d2[-2])
    return t, d1, d2
