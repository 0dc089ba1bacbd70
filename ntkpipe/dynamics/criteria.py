"""How well a kernel suits targets, from the matrix of some hundred to some thousand points: every ridge from one decomposition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from ntkpipe.errors import ConfigError

CRITERIA = ("likelihood", "loo", "held_out")
"""What kernels are compared by; the smallest is the best of all three."""


@dataclass(frozen=True)
class Score:
    """What one kernel is worth.

    Args:
        value: of the best ridge, the smaller the better.
        ridge: the best, relative to the mean of the diagonal.
        curve: (R,) values of all ridges; inf where there is none.
        accuracy: of the predictions that the value is of, for classes; None of a likelihood.
    """

    value: float
    ridge: float
    curve: np.ndarray
    accuracy: float | None = None


def score(
    kernel: np.ndarray,
    targets: np.ndarray,
    ridges: Sequence[float],
    by: str,
    *,
    held_out: int = 0,
    labels: np.ndarray | None = None,
) -> Score:
    """The worth of a kernel.

    `likelihood` is minus the logarithm of the evidence of a Gaussian process, per number, with the kernel's overall scale at its most
    likely value, which moves no mean. `loo` is the mean squared error of every point from all others at t = inf, `held_out` that of
    the last points from those before.

    Args:
        kernel: (m, m), symmetric.
        targets: (m, c).
        ridges: relative to the mean of the diagonal.
        by: one of `CRITERIA`.
        held_out: of that, how many points.
        labels: (m,) classes, if targets are of some.

    Raises:
        ConfigError: for another criterion, or none held out.
    """
    if by not in CRITERIA:
        raise ConfigError(f"by={by} is not one of {', '.join(CRITERIA)}")
    m, relative = len(kernel), np.asarray(ridges, dtype=np.float64)
    kernel = np.asarray(kernel, dtype=np.float64)
    known = m if by != "held_out" else m - held_out
    if not 0 < known <= m or (by == "held_out" and not held_out):
        raise ConfigError(f"held_out={held_out} of {m} points leaves {known} to learn from")
    values, vectors = scipy.linalg.eigh(kernel[:known, :known])
    # Rounding makes the smallest ones negative.
    values = np.maximum(values, 0.0)
    inside = vectors.T @ targets[:known]
    shifted = values[:, None] + relative * float(np.diagonal(kernel)[:known].mean())
    ok = shifted[0] > m * np.finfo(np.float64).eps * values[-1]
    curve = np.full(len(relative), math.inf)
    accuracies = np.full(len(relative), math.nan)
    for r in np.flatnonzero(ok):
        solved = inside / shifted[:, r, None]
        if by == "likelihood":
            energy = float(np.sum(inside * solved)) / targets.size
            if energy > 0:
                curve[r] = 0.5 * (math.log(2 * math.pi * energy) + 1.0) + 0.5 * float(np.log(shifted[:, r]).mean())
            continue
        if by == "loo":
            weights, y = vectors @ solved, targets
            errors = weights / ((vectors**2) @ (1.0 / shifted[:, r]))[:, None]
        else:
            y = targets[known:]
            errors = y - kernel[known:, :known] @ (vectors @ solved)
        curve[r] = float(np.mean(errors**2))
        if labels is not None:
            accuracies[r] = float(np.mean((y - errors).argmax(axis=1) == labels[m - len(y) :]))
    best = int(curve.argmin())
    accuracy = None if math.isnan(accuracies[best]) else float(accuracies[best])
    return Score(float(curve[best]), float(relative[best]), curve, accuracy)
