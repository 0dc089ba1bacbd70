"""Scores of a kernel for given targets, from a matrix of up to a few thousand points. One decomposition serves all ridges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from ntkpipe.errors import ConfigError

CRITERIA = ("likelihood", "loo", "held_out")
"""The criteria for the comparison of kernels. Smaller values are better for all of them."""


@dataclass(frozen=True)
class Score:
    """The score of one kernel.

    Args:
        value: value of the criterion for the best ridge; smaller is better.
        ridge: the best ridge, relative to the mean of the diagonal.
        curve: (R,) values of all ridges; inf if undefined.
        accuracy: accuracy of the predictions that give the value, for classes; None for the likelihood and in regression.
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
    scale: np.ndarray | None = None,
) -> Score:
    """Compute the score of a kernel.

    `likelihood` is minus the log evidence of a Gaussian process, per target value, at the most likely overall scale of the
    kernel, which does not change means. `loo` is the mean squared leave-one-out error at t = inf, and `held_out` is the mean
    squared error of the last points, predicted from the others.

    Args:
        kernel: (m, m), symmetric.
        targets: (m, c).
        ridges: relative to the mean of the diagonal.
        by: one of `CRITERIA`.
        held_out: number of held-out points, for `held_out`.
        labels: (m,) classes; None in regression.
        scale: (c,) by which the targets were divided; None is 1. Errors of one target are in the units of the data. Several targets
            keep their scaled units, so that each of them counts alike.

    Raises:
        ConfigError: if the criterion is unknown, or no point is held out.
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
    unit = float(scale[0]) if scale is not None and len(scale) == 1 else 1.0
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
        curve[r] = float(np.mean((errors * unit) ** 2))
        if labels is not None:
            accuracies[r] = float(np.mean((y - errors).argmax(axis=1) == labels[m - len(y) :]))
    best = int(curve.argmin())
    accuracy = None if math.isnan(accuracies[best]) else float(accuracies[best])
    return Score(float(curve[best]), float(relative[best]), curve, accuracy)
