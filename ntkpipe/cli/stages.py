"""The composed commands as functions of a configuration and a session."""

from __future__ import annotations

import sys
from collections.abc import Callable

from ntkpipe.cli import describe as describing
from ntkpipe.cli.session import Session
from ntkpipe.config import RunConfig
from ntkpipe.pipeline.forecast import describe_solver
from ntkpipe.pipeline.inputs import look_at, make_plan, wanted_stores
from ntkpipe.pipeline.run_dir import RunDir
from ntkpipe.pipeline.stages import Job


def echo(line: str) -> None:
    """A line of progress, at once, also into a pipe."""
    print(line, file=sys.stderr, flush=True)


def open_job(config: RunConfig, session: Session) -> Job:
    """A run's job; its executor starts when a stage first asks for it."""
    return Job(RunDir.create(config), lambda: session.executor(config.cluster), echo)


def run(config: RunConfig, session: Session) -> None:
    """All stages."""
    job = open_job(config, session)
    with job.run.held():
        if job.all():
            folder = job.run.path
            print(
                f"\npredictions  {folder / 'predictions.zarr'}   (xarray.open_zarr, or ntkpipe export)\n"
                f"metrics      {folder / 'metrics.json'}\n"
                f"report       {folder / 'report' / 'report.html'}   (figures beside it)"
            )


def plan(config: RunConfig, session: Session) -> None:
    """Print the plan; computes nothing and starts nothing."""
    del session
    shapes, store = look_at(config)
    made = make_plan(config, shapes, wanted_stores(config, shapes), store)
    print(made.describe())
    print(describe_solver(config, shapes, made))


def _stage(name: str) -> Callable[[RunConfig, Session], None]:
    def command(config: RunConfig, session: Session) -> None:
        job = open_job(config, session)
        with job.run.held():
            getattr(job, name)()

    command.__doc__ = f"The {name} stage."
    return command


COMMANDS: dict[str, Callable[..., None]] = {
    "run": run,
    "plan": plan,
    "describe": describing.describe,
    "gram": _stage("gram"),
    "solve": _stage("solve"),
    "predict": _stage("predict"),
}

OWN_SETTINGS = {"describe": describing.SETTINGS}
"""What a command takes besides the configuration of a run: keyword arguments of its function."""
