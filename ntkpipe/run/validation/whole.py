"""A validation from beginning to end."""

from __future__ import annotations

from pathlib import Path

from ntkpipe.events.event import Tell
from ntkpipe.run.context import RunContext
from ntkpipe.run.run_dir import RunDir
from ntkpipe.run.validation.record import lines_of, write_validation
from ntkpipe.run.validation.results import collect
from ntkpipe.run.validation.stage import set_up, train
from ntkpipe.tasks.executor import Executor


def validate_run(
    run: RunDir, context: RunContext, executor: Executor, tell: Tell
) -> tuple[Path, list[Path], list[str]]:
    """Train what is not trained yet, and write what was found.

    Returns:
        The folder, the files in it, and lines for people.
    """
    setting = set_up(run, context, executor.workers)
    train(setting, executor, tell)
    made = collect(setting)
    folder = run.path / "validation"
    return folder, write_validation(made, folder), lines_of(made)
