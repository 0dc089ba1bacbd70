"""How much targets scatter about what networks can predict: the variance of the observation noise, from training points alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import scipy.linalg
from scipy.optimize import minimize_scalar

from ntkpipe.errors import ConfigError
from ntkpipe.linalg.assemble import assemble
from ntkpipe.uncertainty.selection import held_out_errors

if TYPE_CHECKING:
    from ntkpipe.solvers.solution import Solution
    from ntkpipe.solvers.workspace import Workspace

# The likelihood takes all eigenvalues: 1e12 operations for so many points.
_MOST_POINTS = 10_000
# Searched for between these, in units of the mean square of the targets.
_LEAST, _MOST = 1e-8, 10.0
_STARTS = 41


def noise_of(
    noise: str,
    solution: Solution,
    times: Sequence[float],
    variance: np.ndarray,
    *,
    count: int,
    scale: np.ndarray | None = None,
    workspace: Workspace | None = None,
) -> np.ndarray:
    """Variances of the noise, (T, R, c), in the units in which the targets were solved for.

    Args:
        noise: a number, in the units of the data; `likelihood`; or `held_out`.
        solution: of one kernel.
        times: T times in steps.
        variance: (T, R, p) of test points over networks.
        count: of training points that `held_out` predicts from the others.
        scale: (c,) that targets were divided by; None is 1.
        workspace: where passes over tiles are made; None is where it was solved.

    Raises:
        ConfigError: if it is none of these, or there are too many points for a likelihood.
    """
    shape = (len(times), len(solution.problem.ridges), solution.problem.targets.shape[1])
    if noise == "held_out":
        return held_out_noise(solution, times, variance, count, workspace or solution.workspace)
    if noise == "likelihood":
        return np.broadcast_to(likelihood_noise(_dense(solution), solution.problem.own_targets), shape)
    try:
        given = float(noise)
    except ValueError:
        raise ConfigError(f"noise={noise!r} is not a variance, nor one of likelihood, held_out") from None
    return np.broadcast_to(given / (1.0 if scale is None else scale**2), shape)


def held_out_noise(
    solution: Solution, times: Sequence[float], variance: np.ndarray, count: int, workspace: Workspace
) -> np.ndarray:
    """Mean squared errors of the last `count` training points, predicted from the others, less the mean variance over networks.

    So predicted variances are right on average for points like these. At least 0. Arguments and result as of `noise_of`.
    """
    errors, _ = held_out_errors(solution, count, times, workspace)
    return np.maximum(np.mean(errors**2, axis=2) - variance.mean(axis=2)[..., None], 0.0)


def likelihood_noise(kernel: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The variance `s` of each target at which `log N(y | 0, K + s I)` is largest, by all eigenvalues of the kernel.

    Args:
        kernel: (n, n) float64, K.
        targets: (n, c).

    Returns:
        (c,).
    """
    values, vectors = scipy.linalg.eigh(kernel)
    values = np.maximum(values, 0.0)
    found = []
    for weights in ((vectors.T @ targets) ** 2).T:
        unit = weights.sum() / len(targets)
        if unit == 0:
            found.append(0.0)
            continue

        def cost(logarithm: float, weights: np.ndarray = weights, unit: float = unit) -> float:
            total = values + unit * np.exp(logarithm)
            return float(np.sum(np.log(total) + weights / total))

        grid = np.linspace(np.log(_LEAST), np.log(_MOST), _STARTS)
        best = int(np.argmin([cost(one) for one in grid]))
        bounds = (grid[max(best - 1, 0)], grid[min(best + 1, _STARTS - 1)])
        found.append(unit * float(np.exp(minimize_scalar(cost, bounds=bounds, method="bounded").x)))
    return np.array(found)


def _dense(solution: Solution) -> np.ndarray:
    kernel = solution.problem.kernel
    if kernel.n > _MOST_POINTS:
        raise ConfigError(
            f"noise=likelihood takes all eigenvalues of a kernel of {kernel.n:,} points, and is for at most {_MOST_POINTS:,}: use "
            "noise=held_out"
        )
    return assemble(kernel.matrix)
