"""Choice of the ridge and the training time by held-out or leave-one-out errors on training points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ntkpipe.dynamics.krylov import means_from_weights
from ntkpipe.errors import ConfigError
from ntkpipe.linalg.operator import tile_operator

if TYPE_CHECKING:
    from ntkpipe.solvers.solution import Solution
    from ntkpipe.solvers.workspace import Workspace

# Columns of a product: 256 x 50,000 float64 are 100 MB.
_COLUMNS = 256


@dataclass(frozen=True)
class Chosen:
    """The result of a selection for one kernel.

    Args:
        record: JSON-ready: `times` (infinity as the string `inf`), `ridges` (as configured), `images` (number of
            predicted points), `exact` (false for a sample of points), `mse` (in the units of the data) and `accuracy` with
            their `_standard_error`s, (T, R) lists with null for unknown values, and `best`: `time`, `ridge` and their
            errors.
        residuals: (R, n, c) exact leave-one-out residuals, in the order of the kernel and the units of the data; None
            unless all are known.
    """

    record: dict[str, Any]
    residuals: np.ndarray | None = None


def held_out_count(asked: float, n: int) -> int:
    """The number of held-out points.

    Args:
        asked: a share below 1, or a number of points.
        n: number of training points.

    Raises:
        ConfigError: if no point or every point is held out.
    """
    count = int(asked) if asked >= 1 else round(asked * n)
    if not 0 < count < n:
        raise ConfigError(
            f"predict.held_out={asked:g} of {n:,} training points leaves {count:,} to predict and "
            f"{max(n - count, 0):,} to train on: set another share or number"
        )
    return count


def select_held_out(
    solution: Solution,
    count: int,
    times: Sequence[float],
    *,
    labels: np.ndarray | None = None,
    scale: np.ndarray | None = None,
    workspace: Workspace | None = None,
) -> Chosen:
    """Errors on the last `count` training points, predicted from the others, and the time and ridge with the smallest
    error.

    Test points are not used. In classification the largest accuracy is chosen, and among equal ones the smallest squared
    error. In regression the smallest squared error of the targets of the solve is chosen, so standardised targets have
    equal weight.

    Args:
        solution: of one kernel, on all training points; its solver, times and ridges are used.
        count: number of held-out points.
        times: T times in steps, ascending.
        labels: (n,) classes of the training points; None in regression.
        scale: (c,) by which the targets were divided; None is 1.
        workspace: store and executor; None takes those of the solution.
    """
    errors, rows = held_out_errors(solution, count, times, workspace or solution.workspace)
    return Chosen(_record(solution, errors, rows, times, labels, _unit(scale), exact=True, of=len(rows)))


def select_leave_one_out(
    solution: Solution,
    *,
    labels: np.ndarray | None = None,
    scale: np.ndarray | None = None,
    workspace: Workspace | None = None,
) -> Chosen:
    """The same choice as `select_held_out`, by leave-one-out errors at t = inf. Arguments have the same meaning."""
    n = solution.problem.kernel.n
    found = solution.leave_one_out(workspace=workspace or solution.workspace)
    exact = len(found.rows) == n
    unit = _unit(scale)
    record = _record(solution, found.residuals[None], found.rows, (math.inf,), labels, unit, exact=exact, of=n)
    return Chosen(record, found.residuals * unit if exact else None)


def _unit(scale: np.ndarray | None) -> np.ndarray:
    return np.ones(1) if scale is None else scale


def held_out_errors(
    solution: Solution, count: int, times: Sequence[float], workspace: Workspace
) -> tuple[np.ndarray, np.ndarray]:
    """Errors (T, R, v, c) of the last v training points, predicted from the others, and the rows of these points.

    An error is the target minus the prediction. The kernels between held-out and other points are in the train-train
    tiles: one pass multiplies them with weights that are zero on the held-out points.
    """
    problem, name = solution.problem, solution.name
    n = problem.kernel.n
    kept = n - count

    def tell(line: str, **facts: Any) -> None:
        workspace.tell(f"{name}, {count:,} points held out: {line.removeprefix(f'{name}: ')}", **facts)

    solved = solution.solver.answer(problem.leading(kept), replace(workspace, tell=tell)).at(times)
    weights, shape = solved.dual_weights()
    products, settings = [], solution.solver.config()
    with tile_operator(problem.kernel.matrix, workspace.executor, products=settings.products) as operator:
        for low in range(0, weights.shape[1], _COLUMNS):
            padded = np.zeros((n, min(_COLUMNS, weights.shape[1] - low)))
            padded[:kept] = weights[:, low : low + _COLUMNS]
            products.append(operator.matmul(padded)[kept:])
    means = means_from_weights(np.concatenate(products, axis=1), shape)
    return problem.own_targets[kept:n] - means, np.arange(kept, n)


def _record(
    solution: Solution,
    errors: np.ndarray,
    rows: np.ndarray,
    times: Sequence[float],
    labels: np.ndarray | None,
    unit: np.ndarray,
    *,
    exact: bool,
    of: int,
) -> dict[str, Any]:
    """The record of `Chosen`, from the errors (T, R, s, c) of the points `rows`, a sample of `of` points.

    `unit` converts errors to the units of the data.
    """
    s = len(rows)
    # Correction for a sample from a finite set.
    spread = math.sqrt((1.0 - s / of) if not exact else 1.0) / math.sqrt(s)
    squared, solved = np.mean((errors * unit) ** 2, axis=3), np.mean(errors**2, axis=(2, 3))
    record: dict[str, Any] = {
        "times": ["inf" if math.isinf(t) else float(t) for t in times],
        "ridges": [float(r) for r in solution.problem.asked_ridges],
        "images": s,
        "exact": exact,
        "mse": _plain(squared.mean(axis=2)),
        "mse_standard_error": _plain(squared.std(axis=2) * spread),
    }
    known = np.isfinite(solved)
    order = np.where(known, solved, np.inf)
    criterion = order
    if labels is not None:
        means = solution.problem.own_targets[rows] - errors
        right = (means.argmax(axis=3) == labels[rows]).astype(np.float64)
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
    """Nested lists with None for values that are not finite."""
    return [[float(v) if math.isfinite(v) else None for v in row] for row in values]
