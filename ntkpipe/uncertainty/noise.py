"""The variance of the observation noise, estimated from training points."""

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

# The likelihood needs all eigenvalues, which take 1e12 operations for this many points.
_MOST_POINTS = 10_000
# Range of the search, in units of the mean square of the targets.
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
    """Variances of the observation noise, (T, R, c), in the units of the targets of the solve.

    Args:
        noise: a variance in the units of the data; `likelihood`; or `held_out`.
        solution: of one kernel.
        times: T times in steps.
        variance: (T, R, p) variances of test points over networks.
        count: number of training points that `held_out` predicts from the others.
        scale: (c,) by which the targets were divided; None is 1.
        workspace: store and executor for passes over tiles; None takes those of the solution.

    Raises:
        ConfigError: if `noise` is none of these, or if there are too many points for `likelihood`.
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
    """Mean squared errors of the last `count` training points, predicted from the others, minus the mean variance.

    The result is at least 0. With it, predicted variances are right on average for points like the held-out ones.
    Arguments and result are those of `noise_of`.
    """
    errors, _ = held_out_errors(solution, count, times, workspace)
    return np.maximum(np.mean(errors**2, axis=2) - variance.mean(axis=2)[..., None], 0.0)


def likelihood_noise(kernel: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The noise variance s of each target that maximises `log N(y | 0, K + s I)`, from all eigenvalues of K.

    Args:
        kernel: the kernel K, (n, n) float64.
        targets: (n, c).

    Returns:
        (c,) variances.
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
    """The train-train kernel as one (n, n) array."""
    kernel = solution.problem.kernel
    if kernel.n > _MOST_POINTS:
        raise ConfigError(
            f"noise=likelihood needs all eigenvalues of a kernel of {kernel.n:,} points, and supports at most "
            f"{_MOST_POINTS:,} points: use noise=held_out"
        )
    return assemble(kernel.matrix)
