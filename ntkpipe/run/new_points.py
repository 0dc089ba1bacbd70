"""Predictions for new points with a finished run, which does not change."""

from __future__ import annotations

import dataclasses
import logging
import uuid
from collections.abc import Callable
from typing import Any

from ntkpipe.data.dataset import fit_preprocessing, load_raw
from ntkpipe.errors import ConfigError, IncompleteError
from ntkpipe.events.event import tell_nobody
from ntkpipe.predictions.read import read_predictions
from ntkpipe.predictions.schema import Predictions
from ntkpipe.run.context import RunContext
from ntkpipe.run.predicting import collect, evaluate_kernel, resolve_times
from ntkpipe.run.prepare import reopen
from ntkpipe.run.run_dir import RunDir
from ntkpipe.run.solving import restore
from ntkpipe.solvers.solution import Solution
from ntkpipe.sources.blocks import KernelBlocks
from ntkpipe.sources.new_points import given_blocks, new_blocks, new_points, seconds_of
from ntkpipe.storage.memory import MemoryStore
from ntkpipe.tasks.executor import Executor
from ntkpipe.tasks.serial import SerialExecutor

_log = logging.getLogger(__name__)

Choose = Callable[[float], Executor | None]
"""Chooses an executor from the seconds that the work takes on one core; None means this process."""


def predict_new(
    run: RunDir, x: Any, *, layout: str | None = None, diagonal: Any = None, choose: Choose | None = None
) -> Predictions:
    """Return predictions for new points; see `Run.predict`.

    The tiles between new and training points are computed for one batch of points at a time, in this process and in
    memory. If `choose` returns an executor, its workers store them beside the run's tiles until they are used.
    """
    run.require("solve")
    if (initial := run.config.predict.initial) not in ("zero", "network"):
        raise ConfigError(
            f"predict.initial={initial} gives outputs of the run's own points only, so new points cannot be "
            "predicted: start from zero or from the network"
        )
    if run.config.kernel.kind == "empirical" and run.config.kernel.outputs == "full":
        raise ConfigError(
            "a run with kernel.outputs=full predicts only its own test points: add the new points to the data as test "
            "points, or use kernel.outputs=trace"
        )
    context = reopen(run)
    config = context.config
    solved = [restore(context, name, run) for name in config.predict.kernels]
    whole = fit_preprocessing(load_raw(config.data), config.data) if config.data.zca is not None else None
    if config.kernel.kind == "gram":
        if diagonal is None and config.predict.covariance != "none":
            raise ConfigError(
                "variances need k(x, x) of the new points: set data.new_diagonal=FILE.npy, or call predict(rows, "
                "diagonal=...)"
            )
        return _with_noise(run, _predict(context, given_blocks(context.kernels, x, diagonal), solved, SerialExecutor()))
    if diagonal is not None:
        raise ConfigError(
            f"data.new_diagonal is only for kernel=gram, and kernel={config.kernel.kind} is computed for new points: "
            "leave it out"
        )
    new = new_points(context.kernels, x, layout=layout or config.data.layout, whole=whole)
    for note in new.notes:
        _log.warning("%s", note)
    executor = None if choose is None else choose(seconds_of(context.kernels, len(new.x)))
    executor = executor or SerialExecutor()
    place = None if isinstance(executor, SerialExecutor) else config.store.url
    full = config.predict.covariance == "full"
    kernels = len(context.kernels.source.identity.kernels)
    made: list[Predictions] = []
    for batch in [new] if full else new.batches(context.kernels.n, kernels):
        with new_blocks(context.kernels, batch, executor, place) as blocks:
            made.append(_predict(context, blocks, solved, executor))
    return _with_noise(run, Predictions.concatenated(made))


def _predict(context: RunContext, blocks: KernelBlocks, solved: list[Solution], executor: Executor) -> Predictions:
    times, store = resolve_times(context, solved), MemoryStore(f"new-{uuid.uuid4().hex}")
    found = dataclasses.replace(context, opened=dataclasses.replace(context.opened, blocks=blocks))
    parts = [evaluate_kernel(found, one, times, executor, tell_nobody, store=store) for one in solved]
    warnings = dict.fromkeys((*context.warnings, *(text for part in parts for text in part.warnings)))
    return collect(found, solved, parts, list(warnings))


def _with_noise(run: RunDir, predictions: Predictions) -> Predictions:
    """Return the predictions with the noise variance that the run chose."""
    if run.config.predict.noise is None:
        return predictions
    if run.receipt("predict") is None:
        raise IncompleteError(
            f"the noise (predict.noise) is chosen when the run predicts: first run ntkpipe predict run_dir={run.path}"
        )
    noise = read_predictions(run.path / "predictions.zarr", covariance=False).noise
    return dataclasses.replace(predictions, noise=noise)
