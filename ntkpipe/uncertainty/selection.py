"""Choosing the ridge and the training time from training images alone: the last of them held out, or each left out in turn."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntkpipe.dynamics.gaussian_process import Eigensystem
from ntkpipe.dynamics.krylov import KrylovSolution, means_from_weights
from ntkpipe.dynamics.leave_one_out import residuals_from_eigensystem
from ntkpipe.dynamics.sampling import sample_indices
from ntkpipe.dynamics.variance import KernelRows
from ntkpipe.errors import ConfigError
from ntkpipe.linalg.factor.posterior import leave_one_out
from ntkpipe.linalg.operator import tile_operator
from ntkpipe.run.context import Inputs
from ntkpipe.solvers import stage as solving
from ntkpipe.solvers.factors import Factors
from ntkpipe.solvers.problem import Solved, Tell, dual_weights, with_own_targets
from ntkpipe.tasks.executor import Executor
from ntkpipe.uncertainty.filters import Part, open_filters

# Rows of a stochastic leave-one-out estimate, solved for in one block. Their standard error of an accuracy near one half is 6%.
_LOO_ROWS = 64
# Columns of a product: 256 x 50,000 float64 are 100 MB.
_COLUMNS = 256


@dataclass(frozen=True)
class Chosen:
    """What a selection found for one kernel.

    Args:
        record: JSON-ready: see `select`.
        residuals: (R, n, c) exact leave-one-out residuals, in stored order; None where they are not all known.
    """

    record: dict[str, Any]
    residuals: np.ndarray | None = None


def held_out_count(inputs: Inputs) -> int:
    """Images that are held out: the last of those in use.

    Raises:
        ConfigError: if that is none, or all of them.
    """
    asked, n = inputs.config.predict.held_out, inputs.n_train
    count = int(asked) if asked >= 1 else round(asked * n)
    if not 0 < count < n:
        raise ConfigError(
            f"predict.held_out={asked:g} of {n:,} training images leaves {count:,} to predict and {max(n - count, 0):,} to learn "
            "from: give another share, or number"
        )
    return count


def select(inputs: Inputs, solved: Solved, times: tuple[float, ...], executor: Executor, tell: Tell) -> Chosen:
    """Errors of one kernel on training images that it was not trained on, and the time and ridge with the smallest.

    Test images have no part in it. In classification the largest accuracy is chosen, of equal ones that with the smallest
    squared error; in regression the smallest squared error.

    Args:
        inputs: of the run.
        solved: the kernel, on all training images.
        times: T times in steps, ascending.
        executor: of the products.
        tell: receives a line for people.

    Returns:
        A record with `times` (infinity as the string `inf`), `ridges` (as configured), `images` (how many were predicted),
        `exact` (false of a sample), `mse` and `accuracy` with their `_standard_error`s, (T, R) lists, null where not known,
        and `best`: `time`, `ridge` and these numbers.
    """
    if inputs.config.predict.selection == "held_out":
        errors, indices = _held_out(inputs, solved.problem.name, times, executor, tell)
        return Chosen(_record(inputs, errors, indices, times, exact=True, of=len(indices)))
    errors, indices = _leave_one_out(inputs, solved, executor, tell)
    exact = len(indices) == inputs.n_train
    record = _record(inputs, errors[None], indices, (math.inf,), exact=exact, of=inputs.n_train)
    return Chosen(record, errors if exact else None)


def _held_out(
    inputs: Inputs, name: str, times: tuple[float, ...], executor: Executor, tell: Tell
) -> tuple[np.ndarray, np.ndarray]:
    """Targets less predictions (T, R, v, c) of the last v training images from the others, and their rows.

    Their kernels with the others are rows of the train-train tiles that there are: one pass with weights that are zero on
    the images held out.
    """
    n, count = inputs.n_train, held_out_count(inputs)
    kept = n - count
    predict = dataclasses.replace(inputs.config.predict, covariance="none", selection="none")
    config = dataclasses.replace(inputs.config, predict=predict)
    smaller = dataclasses.replace(inputs, config=config, n_train=kept, exact={})

    def say(line: str, **facts: Any) -> None:
        tell(f"{name}, {count:,} images held out: {line.removeprefix(f'{name}: ')}", **facts)

    solved = solving.solve(smaller, name, executor, say)
    weights, shape = dual_weights(solved, times)
    products = []
    matrix = inputs.matrix(solved.problem.source, "train")
    with tile_operator(matrix, executor, products=inputs.config.solver.products) as operator:
        for low in range(0, weights.shape[1], _COLUMNS):
            padded = np.zeros((n, min(_COLUMNS, weights.shape[1] - low)))
            padded[:kept] = weights[:, low : low + _COLUMNS]
            products.append(operator.matmul(padded)[kept:])
    means = means_from_weights(np.concatenate(products, axis=1), shape)
    return inputs.images.labels().y_train[kept:n] - means, np.arange(kept, n)


def _leave_one_out(inputs: Inputs, solved: Solved, executor: Executor, tell: Tell) -> tuple[np.ndarray, np.ndarray]:
    """Leave-one-out residuals (R, s, c) and the rows that they are of: all, or a sample."""
    problem, kind, n = solved.problem, inputs.config.solver.kind, inputs.n_train
    if kind == "eigh" and isinstance(solved.solution, KrylovSolution):
        system = Eigensystem(solved.solution.values, solved.solution.basis.T)
        own = inputs.images.labels().y_train[:n]
        out = residuals_from_eigensystem(system, own, problem.ridges)
        return _of_copies(inputs, solved, out, np.arange(n)), np.arange(n)
    weights, (_, ridges, c) = dual_weights(solved, (math.inf,))
    weights = weights.reshape(n, ridges, c).transpose(1, 0, 2)
    weights = np.stack(
        [with_own_targets(inputs, problem, w, ridge)[1] for w, ridge in zip(weights, problem.ridges, strict=True)]
    )
    products = inputs.config.solver.products if kind in ("krylov", "cg") else "float64"
    with tile_operator(inputs.matrix(problem.source, "train"), executor, products=products) as operator:
        if kind == "cholesky":
            factors = Factors.of(inputs, inputs.gram, problem.source, executor)
            out = np.empty_like(weights)
            for j, ridge in enumerate(problem.ridges):
                tell(f"{problem.name}: leave-one-out, ridge {ridge:.3g}")
                out[j] = leave_one_out(factors.factor(operator, ridge), operator, weights[j]).residuals
            return _of_copies(inputs, solved, out, np.arange(n)), np.arange(n)
        rows = sample_indices(n, _LOO_ROWS, seed=1)
        tell(f"{problem.name}: leave-one-out of {len(rows)} images, drawn at random")
        # [A^-1]_ii is at least 1 / A_ii: the tolerance is made relative to it.
        diagonal = operator.diagonal()
        scale = float(diagonal.max()) + max(problem.ridges)
        tight = dataclasses.replace(inputs.config.solver, tolerance=inputs.config.solver.tolerance / scale)
        view = dataclasses.replace(inputs, config=dataclasses.replace(inputs.config, solver=tight))
        sampled = KernelRows(rows[:1], operator.rows(rows[:1]), None)
        part = Part(view, inputs.gram, solved, (math.inf,), operator, sampled, 1.0, executor, full=False)
        units = np.zeros((n, len(rows)))
        units[rows, np.arange(len(rows))] = 1.0
        with open_filters(part, problem.ridges) as filters:
            inverse = filters.posterior(units).value[0]
    return _of_copies(inputs, solved, weights[:, rows] / inverse[:, :, None], rows), rows


def _of_copies(inputs: Inputs, solved: Solved, residuals: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Without ridge an image is predicted from those that equal it alone: their targets' mean. Residuals (R, s, c) of `rows`."""
    copies = solved.problem.copies
    if not copies.count:
        return residuals
    own, sizes = inputs.images.labels().y_train[: inputs.n_train], copies.sizes
    several = sizes[rows] > 1
    picked = rows[several]
    # A mean without one of its m members is off by m / (m - 1) times as much as the mean with it.
    share = sizes[picked] / (sizes[picked] - 1.0)
    for j, ridge in enumerate(solved.problem.ridges):
        if ridge == 0:
            residuals[j][several] = (own[picked] - solved.problem.targets[picked]) * share[:, None]
    return residuals


def _record(
    inputs: Inputs, errors: np.ndarray, indices: np.ndarray, times: Sequence[float], *, exact: bool, of: int
) -> dict[str, Any]:
    """From errors (T, R, s, c) of the images at rows `indices`, `of` so many, to what `select` describes."""
    labels, s = inputs.images.labels(), len(indices)
    # Of a sample that is not all there is.
    spread = math.sqrt((1.0 - s / of) if not exact else 1.0) / math.sqrt(s)
    squared = np.mean(errors**2, axis=3)
    record: dict[str, Any] = {
        "times": ["inf" if math.isinf(t) else float(t) for t in times],
        "ridges": [float(r) for r in inputs.config.predict.ridges],
        "images": s,
        "exact": exact,
        "mse": _plain(squared.mean(axis=2)),
        "mse_standard_error": _plain(squared.std(axis=2) * spread),
    }
    known = np.isfinite(squared.mean(axis=2))
    order = np.where(known, squared.mean(axis=2), np.inf)
    criterion = order
    if labels.labels_train is not None:
        means = labels.y_train[indices] - errors
        right = (means.argmax(axis=3) == labels.labels_train[indices]).astype(np.float64)
        accuracy = np.where(known, right.mean(axis=2), np.nan)
        record["accuracy"] = _plain(accuracy)
        record["accuracy_standard_error"] = _plain(np.sqrt(accuracy * (1 - accuracy)) * spread)
        criterion = np.where(known, -accuracy, np.inf)
    if not known.any():
        return {**record, "best": None}
    ties = np.argwhere(criterion == criterion.min())
    t, r = min((tuple(int(i) for i in tie) for tie in ties), key=lambda tie: order[tie])
    numbers = ("mse", "mse_standard_error", "accuracy", "accuracy_standard_error")
    record["best"] = {
        "time": record["times"][t],
        "ridge": record["ridges"][r],
        **{name: record[name][t][r] for name in numbers if name in record},
    }
    return record


def _plain(values: np.ndarray) -> list[list[float | None]]:
    return [[float(v) if math.isfinite(v) else None for v in row] for row in values]
