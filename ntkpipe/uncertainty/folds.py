"""Cross-validation on one Gram matrix: each fold of the training points is predicted from the other folds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ntkpipe.dynamics.filters import absolute_ridge
from ntkpipe.dynamics.gaussian_process import means
from ntkpipe.errors import ConfigError
from ntkpipe.linalg.assemble import assemble
from ntkpipe.linalg.eigh import Eigensystem

if TYPE_CHECKING:
    from ntkpipe.solvers.solution import Solution

# The float64 matrix of this many points takes 0.8 GB.
_MOST_POINTS = 10_000


def fold_numbers(n: int, folds: int, labels: np.ndarray | None = None) -> np.ndarray:
    """The fold of each of n points, (n,) from 0. Sizes of folds differ by at most one point, also within each class.

    Points are assigned in turn, in their stored order, which is random.

    Raises:
        ConfigError: if there are fewer points than folds.
    """
    if folds > n:
        raise ConfigError(f"data.folds={folds} exceeds the number of training points: set at most {n}")
    order = np.arange(n) if labels is None else np.argsort(labels, kind="stable")
    found = np.empty(n, dtype=np.int64)
    found[order] = np.arange(n) % folds
    return found


def cross_validate(
    solution: Solution,
    folds: int,
    times: Sequence[float] | None = None,
    *,
    labels: np.ndarray | None = None,
    scale: np.ndarray | None = None,
    initial: np.ndarray | None = None,
) -> dict[str, Any]:
    """Cross-validation errors at every time and ridge: means over the folds, and standard errors.

    Each fold needs an exact float64 eigendecomposition of the kernel of the other folds, in the memory of this process.
    A relative ridge is relative to the kernel of the points of these other folds.

    Args:
        solution: of one kernel; its problem is divided into folds.
        folds: number of folds.
        times: T times in steps; None takes the times of the solution.
        labels: (n,) classes, whose proportions are the same in every fold; None in regression.
        scale: (c,) by which the targets were divided; None is 1.
        initial: (n, c) outputs at the start of training, which were subtracted from the targets; None is zero.

    Returns:
        JSON-ready: `folds`, `times`, `ridges`; `mse` and `accuracy`, or in regression `mse`, `rmse` and `r2`, each with
        `mean` and `standard_error`, which are lists over times of lists over ridges; and `best`, the time and ridge
        with the largest mean accuracy or the smallest `mse`.

    Raises:
        ConfigError: if there are too many points, or fewer points than folds.
    """
    problem = solution.problem
    kernel, targets = problem.kernel, problem.own_targets
    if kernel.n > _MOST_POINTS:
        raise ConfigError(
            f"data.folds needs the whole kernel of {kernel.n:,} points in memory, and supports at most "
            f"{_MOST_POINTS:,} points: use predict.selection=held_out"
        )
    times = tuple(solution.times if times is None else times)
    numbers = fold_numbers(kernel.n, folds, labels)
    whole, plain = assemble(kernel.matrix), kernel.diagonal(plain=True)
    unit = np.ones(targets.shape[1]) if scale is None else scale
    measured: dict[str, list[np.ndarray]] = {}
    for fold in range(folds):
        held, kept = np.flatnonzero(numbers == fold), np.flatnonzero(numbers != fold)
        ridges = [absolute_ridge(ridge, plain[kept], problem.ridge_scale) for ridge in problem.asked_ridges]
        trained = problem.dynamics.filter(len(kept) * kernel.images_per_row, targets.shape[1])
        system = Eigensystem.of(whole[np.ix_(kept, kept)], kernel.matrix.dtype)
        made = means(system, whole[np.ix_(held, kept)], targets[kept], trained, times, ridges)
        start = np.zeros(targets.shape[1]) if initial is None else initial[held]
        made, wanted = made + start, targets[held] + start
        for name, values in _measures(made, wanted, unit, None if labels is None else labels[held]).items():
            measured.setdefault(name, []).append(values)
    record: dict[str, Any] = {
        "folds": folds,
        "times": ["inf" if math.isinf(t) else float(t) for t in times],
        "ridges": [float(ridge) for ridge in problem.asked_ridges],
    }
    for name, values in measured.items():
        stacked = np.stack(values)
        error = stacked.std(axis=0, ddof=1) / math.sqrt(folds)
        record[name] = {"mean": stacked.mean(axis=0).tolist(), "standard_error": error.tolist()}
    return {**record, "best": _best(record)}


def _measures(
    made: np.ndarray, target: np.ndarray, unit: np.ndarray, labels: np.ndarray | None
) -> dict[str, np.ndarray]:
    """The error measures (T, R) by name, from means (T, R, v, c) and targets (v, c)."""
    squared = np.mean(((made - target) * unit) ** 2, axis=2)
    found = {"mse": squared.mean(axis=2)}
    if labels is not None:
        return {"accuracy": np.mean(made.argmax(axis=3) == labels, axis=2), **found}
    spread = np.var(target * unit, axis=0)
    r2 = np.mean(1 - squared / np.where(spread > 0, spread, np.nan), axis=2)
    return {**found, "rmse": np.sqrt(found["mse"]), "r2": r2}


def _best(record: dict[str, Any]) -> dict[str, Any] | None:
    """The best time and ridge with their errors; None if no error is finite."""
    worth = np.array(record["accuracy"]["mean"]) if "accuracy" in record else -np.array(record["mse"]["mean"])
    if not np.isfinite(worth).any():
        return None
    t, r = np.unravel_index(int(np.nanargmax(np.where(np.isfinite(worth), worth, np.nan))), worth.shape)
    names = [name for name in ("accuracy", "mse", "rmse", "r2") if name in record]
    of_names = {name: record[name]["mean"][t][r] for name in names}
    errors = {f"{name}_standard_error": record[name]["standard_error"][t][r] for name in names}
    return {"time": record["times"][t], "ridge": record["ridges"][r], **of_names, **errors}
