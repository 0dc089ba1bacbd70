"""Runs a complete validation."""

from __future__ import annotations

import time
from pathlib import Path

from ntkpipe.events.event import Emit, Event, Kind, stage
from ntkpipe.report.drawing import can_draw, without_figures
from ntkpipe.run.context import RunContext
from ntkpipe.run.run_dir import RunDir
from ntkpipe.run.validation.drawing import draw
from ntkpipe.run.validation.record import lines_of, write_validation
from ntkpipe.run.validation.results import collect
from ntkpipe.run.validation.stage import set_up, train
from ntkpipe.tasks.executor import Executor


def validate_run(run: RunDir, context: RunContext, executor: Executor, emit: Emit) -> Path:
    """Train the missing networks, write and print the results, draw the figures, and return the folder of the results.

    Raises:
        ConfigError, ResourceError: before any network is trained.
        ReportError: if the figures could not be drawn; all results are stored before.
    """
    began, folder = time.monotonic(), run.path / "validation"
    with stage(emit, "validate") as tell:
        setting = set_up(run, context, executor.workers)
        train(setting, executor, tell)
        made = collect(setting)
        files = write_validation(made, folder)
        seconds = time.monotonic() - began
        emit(Event(Kind.STAGE_DONE, "validate", facts=run.finish("validate", seconds, files), elapsed=seconds))
    for line in lines_of(made):
        emit(Event(Kind.NOTE, "", line))
    if run.config.report and not can_draw():
        emit(Event(Kind.NOTE, "", without_figures("the same command")))
    elif run.config.report:
        for figure in draw(made, folder, "the same command"):
            emit(Event(Kind.NOTE, "", f"figure   {figure}"))
    return folder
