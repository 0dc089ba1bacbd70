"""Computes a run's predictions for each kernel, and collects them for export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ntkpipe
from ntkpipe.events.event import Tell
from ntkpipe.predictions.schema import Predictions
from ntkpipe.run.context import RunContext
from ntkpipe.run.solving import workspace_of
from ntkpipe.solvers.prediction import KernelPredictions, joined
from ntkpipe.solvers.solution import Solution, grid_of_times
from ntkpipe.storage.clock import now
from ntkpipe.storage.protocol import ObjectStore
from ntkpipe.tasks.executor import Executor
from ntkpipe.uncertainty.folds import cross_validate
from ntkpipe.uncertainty.selection import Chosen, held_out_count, select_held_out, select_leave_one_out


def resolve_times(context: RunContext, solved: Sequence[Solution]) -> tuple[float, ...]:
    """Return the configured times, ascending; by default a grid over the training of all kernels, and infinity."""
    times = context.config.predict.times
    return grid_of_times(solved) if times is None else tuple(sorted(times))


def predict_kernel(
    context: RunContext, solution: Solution, times: tuple[float, ...], executor: Executor, tell: Tell
) -> KernelPredictions:
    """Return the means, error budget, covariances and noise of one kernel."""
    made, p = evaluate_kernel(context, solution, times, executor, tell), context.config.predict
    if p.noise is None:
        return made
    workspace = workspace_of(context, executor, tell)
    return solution.with_noise(made, p.noise, context.kernels.points, held_out=p.held_out, workspace=workspace)


def evaluate_kernel(
    context: RunContext,
    solution: Solution,
    times: tuple[float, ...],
    executor: Executor,
    tell: Tell,
    *,
    store: ObjectStore | None = None,
) -> KernelPredictions:
    """Return the predictions of one kernel without the noise; see `predict_kernel`.

    `store` keeps finished batches of variances; None is the run's store.
    """
    workspace = workspace_of(context, executor, tell)
    p = context.config.predict
    return solution.evaluate(
        context.kernels.test(solution.name),
        times,
        covariance=p.covariance,
        batch=p.covariance_batch,
        workspace=workspace if store is None else replace(workspace, store=store),
    )


def select(context: RunContext, solution: Solution, times: tuple[float, ...], executor: Executor, tell: Tell) -> Chosen:
    """Choose the time and ridge of one kernel on training points."""
    p, known = context.config.predict, context.data.labels()
    workspace = workspace_of(context, executor, tell)
    if p.selection == "held_out":
        count = held_out_count(p.held_out, context.kernels.n)
        return select_held_out(
            solution, count, times, labels=known.labels_train, scale=known.scale, workspace=workspace
        )
    return select_leave_one_out(solution, labels=known.labels_train, scale=known.scale, workspace=workspace)


def _place_of_rate(solution: Solution) -> dict[str, Any]:
    """Return the learning rate times the curvature (the kernel's largest eigenvalue over n c), and its consequence."""
    trained = solution.problem.filter
    share = trained.scaled_rate * solution.largest
    momentum = getattr(trained, "momentum", 0.0)
    edge = 2.0 * (1.0 + momentum)
    if share < edge:
        text = "the theory holds"
    elif solution.name == "nngp":
        text = "linear training of the readout diverges"
    elif share < 2.0 * edge:
        text = (
            "the theory does not hold: these predictions diverge, but a wide network would move to a flatter minimum "
            "(catapult)"
        )
    else:
        text = (
            "training diverges (the edge depends on the nonlinearity: ntkpipe validate finite.rates=[...] measures it)"
        )
    return {"rate_times_curvature": share, "edge": edge, "momentum": momentum, "text": text}


def _coding(context: RunContext) -> str:
    """Return the coding of the targets, recognised or configured."""
    return "regression" if context.data.labels().labels_train is None else context.config.data.labels or "centered"


def validate(context: RunContext, solved: Sequence[Solution], times: tuple[float, ...]) -> dict[str, Any] | None:
    """Return the cross-validation errors on `data.folds` parts of the training points by kernel; None without folds."""
    if context.config.data.folds is None:
        return None
    known = context.data.labels()
    labels = None if known.labels_train is None else known.labels_train[: context.kernels.n]
    folds, initial = context.config.data.folds, None if context.initial is None else context.initial.train
    return {
        one.name: cross_validate(one, folds, times, labels=labels, scale=known.scale, initial=initial) for one in solved
    }


def collect(
    context: RunContext,
    solved: Sequence[Solution],
    parts: Sequence[KernelPredictions],
    warnings: Sequence[str],
    selection: dict[str, Any] | None = None,
    folds: dict[str, Any] | None = None,
    beside: dict[str, Any] | None = None,
) -> Predictions:
    """Return the predictions of all kernels as `Predictions`, with test points in the order of their source."""
    attributes = {
        "ntkpipe": ntkpipe.__version__,
        "created": now(),
        "data": context.data.fingerprint,
        "gram": context.opened.source.identity.to_dict(),
        "n_train": context.kernels.training_points,
        "augment": context.config.augment,
        "learning_rate": context.config.predict.learning_rate,
        "dynamics": context.config.predict.dynamics,
        **({} if context.config.predict.loss == "squared" else {"loss": context.config.predict.loss}),
        **({} if context.initial is None else {"initial": context.config.predict.initial}),
        **(
            {}
            if context.config.predict.dynamics == "gradient_flow"
            else {"rates": {s.name: _place_of_rate(s) for s in solved}}
        ),
        "labels": _coding(context),
        # Of the targets themselves: with initial outputs, those of the solve lack these outputs.
        "target_mean": context.data.labels().y_train[: context.kernels.training_points].mean(axis=0).tolist(),
        "solver": {s.name: s.facts for s in solved},
        "absolute_ridges": {s.name: list(s.problem.ridges) for s in solved},
        "warnings": list(warnings),
        **({} if selection is None else {"selection": selection}),
        **({} if folds is None else {"cross_validation": folds}),
        **({} if beside is None else {"beside_infinite": beside}),
    }
    outputs = context.kernels.rows_of_point
    return joined([part.by_point(outputs) for part in parts], context.points, attributes)
