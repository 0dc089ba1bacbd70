"""Large learning rates in a two-layer linear network with one sample (arXiv:2003.02218).

f = v.u / sqrt(n) with loss (f - y)^2 / 2 and curvature lambda = (|u|^2 + |v|^2) / n. Gradient descent is exactly a
recurrence of two numbers: with g = f - y,

    f'      = f - eta lambda g + eta^2 g^2 f / n
    lambda' = lambda - 4 eta g f / n + eta^2 g^2 lambda / n

For eta lambda < 2 the curvature is constant up to 1 / n. This is the lazy phase, in which the kernel predicts the
network. Between 2 and 4 the error grows to order sqrt(n), the curvature falls, and the network converges to a flatter
minimum. Above 4 it diverges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ntkpipe.errors import ConfigError

# Smaller errors count as converged, larger errors as diverged.
_CONVERGED, _DIVERGED = 1e-12, 1e100


@dataclass(frozen=True)
class Catapult:
    """The result of gradient descent on the two-layer model.

    Args:
        end: `converged` (|f - target| < 1e-12), `diverged`, or `unfinished` after the largest number of steps.
        steps: number of steps.
        lambda_end: curvature at the end.
        peak_error: largest |f - target| of all steps; infinite if it diverged.
    """

    end: str
    steps: int
    lambda_end: float
    peak_error: float


def catapult(
    width: int = 512,
    rate: float = 2.5,
    f0: float = 0.8,
    lambda0: float = 2.0,
    target: float = 0.0,
    *,
    max_steps: int = 1_000_000,
) -> Catapult:
    """Train the two-layer linear network on one sample with a constant rate.

    Args:
        width: n, the width of the hidden layer.
        rate: eta lambda0, the learning rate times the initial curvature: lazy below 2, catapult from 2 to 4.
        f0: initial output.
        lambda0: initial curvature, at least 2 |f0| / sqrt(n).
        target: label of the sample.
        max_steps: largest number of steps. Near a rate of 2, errors fall slower than exponentially.

    Raises:
        ConfigError: if a number is out of range, or no network of this width has this output and curvature.
    """
    _check_count("width", width)
    _check_count("max_steps", max_steps)
    numbers = {"rate": rate, "f0": f0, "lambda0": lambda0, "target": target}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ConfigError(f"{name}={value!r} must be a finite number")
    for name in ("rate", "lambda0"):
        if numbers[name] <= 0:
            raise ConfigError(f"{name}={numbers[name]!r} must be above 0")
    least = 2.0 * abs(f0) / math.sqrt(width)
    if lambda0 < least:
        raise ConfigError(
            f"lambda0={lambda0!r} is below 2 |f0| / sqrt(width) = {least:g}: no network of width {width} with "
            f"f0={f0!r} has it. Use a larger lambda0 or width, or a smaller f0"
        )
    return _train(width, rate / lambda0, float(f0), float(lambda0), float(target), max_steps)


def _train(n: int, eta: float, f: float, curvature: float, target: float, max_steps: int) -> Catapult:
    peak = abs(f - target)
    for steps in range(max_steps + 1):
        g = f - target
        peak = max(peak, abs(g))
        if abs(g) < _CONVERGED:
            return Catapult("converged", steps, curvature, peak)
        if not (abs(g) < _DIVERGED and math.isfinite(curvature)):
            return Catapult("diverged", steps, math.inf, math.inf)
        if steps < max_steps:
            square = eta * eta * g * g / n
            f, curvature = f - eta * curvature * g + square * f, curvature - 4.0 * eta * g * f / n + square * curvature
    return Catapult("unfinished", max_steps, curvature, peak)


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}={value!r} must be a whole number of at least 1")
