"""Choosing the ridge and the training time from training points alone: the last of them held out, or each left out in turn."""

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
    """What a selection found for one kernel.

    Args:
        record: JSON-ready: `times` (infinity as the string `inf`), `ridges` (as asked for), `images` (how many were predicted),
            `exact` (false of a sample), `mse` and `accuracy` with their `_standard_error`s, (T, R) lists, null where not known,
            and `best`: `time`, `ridge` and these numbers.
        residuals: (R, n, c) exact leave-one-out residuals, in the order of the kernel; None where they are not all known.
    """

    record: dict[str, Any]
    residuals: np.ndarray | None = None


def held_out_count(asked: float, n: int) -> int:
    """Points that are held out: the last of n.

    Args:
        asked: a share below 1, or a number.
        n: training points.

    Raises:
        ConfigError: if that is none, or all of them.
    """
    count = int(asked) if asked >= 1 else round(asked * n)
    if not 0 < count < n:
        raise ConfigError(
            f"predict.held_out={asked:g} of {n:,} training points leaves {count:,} to predict and {max(n - count, 0):,} to learn "
            "from: give another share, or number"
        )
    return count


def select_held_out(
    solution: Solution,
    count: int,
    times: Sequence[float],
    *,
    labels: np.ndarray | None = None,
    workspace: Workspace | None = None,
) -> Chosen:
    """Errors on the last `count` training points of what the others predict, and the time and ridge with the smallest.

    Test points have no part in it. In classification the largest accuracy is chosen, of equal ones that with the smallest
    squared error; in regression the smallest squared error.

    Args:
        solution: of one kernel, on all training points: its solver, times and ridges are used.
        count: of points held out.
        times: T times in steps, ascending.
        labels: (n,) classes of the training points; None in regression.
        workspace: where; None is where it was solved.
    """
    errors, rows = held_out_errors(solution, count, times, workspace or solution.workspace)
    return Chosen(_record(solution, errors, rows, times, labels, exact=True, of=len(rows)))


def select_leave_one_out(
    solution: Solution, *, labels: np.ndarray | None = None, workspace: Workspace | None = None
) -> Chosen:
    """As `select_held_out`, by leave-one-out errors at t = inf; arguments as there."""
    n = solution.problem.kernel.n
    found = solution.leave_one_out(workspace=workspace or solution.workspace)
    exact = len(found.rows) == n
    record = _record(solution, found.residuals[None], found.rows, (math.inf,), labels, exact=exact, of=n)
    return Chosen(record, found.residuals if exact else None)


def held_out_errors(
    solution: Solution, count: int, times: Sequence[float], workspace: Workspace
) -> tuple[np.ndarray, np.ndarray]:
    """Targets less predictions (T, R, v, c) of the last v training points from the others, and their rows.

    Their kernels with the others are rows of the train-train tiles that there are: one pass with weights that are zero on
    the points held out.
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
    *,
    exact: bool,
    of: int,
) -> dict[str, Any]:
    """From errors (T, R, s, c) of the points `rows`, `of` so many, to what `Chosen` describes."""
    s = len(rows)
    # Of a sample that is not all there is.
    spread = math.sqrt((1.0 - s / of) if not exact else 1.0) / math.sqrt(s)
    squared = np.mean(errors**2, axis=3)
    record: dict[str, Any] = {
        "times": ["inf" if math.isinf(t) else float(t) for t in times],
        "ridges": [float(r) for r in solution.problem.asked_ridges],
        "images": s,
        "exact": exact,
        "mse": _plain(squared.mean(axis=2)),
        "mse_standard_error": _plain(squared.std(axis=2) * spread),
    }
    known = np.isfinite(squared.mean(axis=2))
    order = np.where(known, squared.mean(axis=2), np.inf)
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
    return [[float(v) if math.isfinite(v) else None for v in row] for row in values]
