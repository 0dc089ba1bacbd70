"""Steps of explicit integrators for `x' = F(x)` with eigenvalues of the Jacobian on the negative real axis. No system is solved.

There are two methods. The method of Dormand and Prince of order 5 is cheap and accurate if steps are below `3 / rho`. Runge-Kutta-Chebyshev
of order 2 (Sommeijer, Shampine, Verwer, J. Comput. Appl. Math. 88, 1998) is stable for steps up to `0.65 s^2 / rho` with s evaluations, so
the number of evaluations grows only with the square root of the length of a step. rho is a bound on the size of the eigenvalues.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Field = Callable[[np.ndarray], np.ndarray]

# Coefficients of Dormand and Prince, J. Comput. Appl. Math. 6, 1980: rows of a, of which the last contains the weights, and coefficients of
# the error.
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
"""Number of evaluations of `accurate_step`."""
ACCURATE_REACH = 3.0
"""Largest stable step of `accurate_step` times rho: 3.3 on the real axis, reduced for errors of rho."""
ACCURATE_KINK, CHEBYSHEV_KINK = 0.2, 0.1
"""Errors of a step of either method by a kink of F inside the step, beyond the estimate of the method, in units of `h m`. Here m is the
distance of F from its smooth continuation: the largest on one side of the kink or the largest on the other, whichever is smaller. In a step
without stiffness they are at most 0.114 and 0.024 (tests/dynamics/test_loss_flow.py)."""
_DAMPING = 2.0 / 13.0
MOST_STAGES = 250
"""Largest number of stages, because rounding errors of a step grow with the square of the stages."""


class Stepped(NamedTuple):
    """The result of a step: the state, F of this state, and an estimate of the local error."""

    x: np.ndarray
    slope: np.ndarray
    error: np.ndarray


def accurate_step(field: Field, x: np.ndarray, slope: np.ndarray, h: float) -> Stepped:
    """One step of the method of Dormand and Prince. `slope` is F(x)."""
    slopes = [slope]
    new = x
    for row in _A:
        new = x + h * sum(a * k for a, k in zip(row, slopes, strict=True) if a)
        slopes.append(field(new))
    error = h * sum(e * k for e, k in zip(_E, slopes, strict=True) if e)
    return Stepped(new, slopes[-1], np.asarray(error))


def stages_for(h: float, rho: float) -> int:
    """Number of evaluations for which a Chebyshev step of length h is stable."""
    return max(2, 1 + math.ceil(math.sqrt(1.54 * h * rho + 1.0)))


def chebyshev_step(field: Field, x: np.ndarray, slope: np.ndarray, h: float, stages: int) -> Stepped:
    """One step of Runge-Kutta-Chebyshev with `stages` evaluations, including the one at its end."""
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
    """Chebyshev polynomials up to degree s at w, with their first and second derivatives."""
    t, d1, d2 = [1.0, w], [0.0, 1.0], [0.0, 0.0]
    for _ in range(2, s + 1):
        t.append(2 * w * t[-1] - t[-2])
        d1.append(2 * t[-2] + 2 * w * d1[-1] - d1[-2])
        d2.append(4 * d1[-2] + 2 * w * d2[-1] - d2[-2])
    return t, d1, d2
