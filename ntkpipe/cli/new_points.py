"""`ntkpipe predict run_dir=DIR data.new=FILE`: predicts new points with a finished run."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from ntkpipe.cli.arguments import settings, truth
from ntkpipe.cli.commands import COMMANDS
from ntkpipe.cli.session import Session
from ntkpipe.cli.stages import echo
from ntkpipe.data.given_array import open_given
from ntkpipe.data.new_points import read_new
from ntkpipe.errors import ConfigError
from ntkpipe.predictions.export import FORMATS, check_format, export_predictions
from ntkpipe.predictions.schema import Predictions
from ntkpipe.run.new_points import Choose, predict_new
from ntkpipe.run.run_dir import RunDir
from ntkpipe.tasks.executor import Executor
from ntkpipe.units import counted

# Seconds above which the run's own executor is used. Ray takes 4 to 7 s to start, and its workers 4 s each to import.
_LONG = 60.0


def predict_new_points(arguments: Sequence[str]) -> int:
    """Predict the new points, write the predictions, print their path, and return the exit code."""
    known = {**COMMANDS["predict"].defaults(), "run_dir": None, "store.url": None, "cluster": None}
    values = settings(arguments, known, "predict")
    if not values["run_dir"]:
        raise ConfigError("data.new needs run_dir=DIR, the folder of a finished run")
    source = Path(str(values["data.new"]))
    target = Path(values["path"] or f"{source.stem}-predictions.csv").expanduser()
    format = target.suffix.lower().removeprefix(".")
    if format not in FORMATS:
        raise ConfigError(f"path={target} must end in one of {', '.join(f'.{one}' for one in FORMATS)}")
    check_format(format, "the ending of path")
    overwrite = truth("overwrite", str(values["overwrite"]))
    if target.exists() and not overwrite:
        raise ConfigError(f"{target} exists: choose another path, or set overwrite=true")
    kind = values["cluster"]
    if kind not in (None, "serial", "local", "ray"):
        raise ConfigError(f"cluster={kind} is not one of serial, local, ray")
    run = RunDir.open(Path(str(values["run_dir"])), store=values["store.url"])
    with Session() as session:
        made = _predict(run, values, str(source), lambda seconds: _executor(run, kind, seconds, session))
    export_predictions(made, target, format, overwrite=overwrite)
    kernels, times, ridges, points, _ = made.shape
    for text in made.attributes.get("warnings", ()):
        print(f"warning  {text}", file=sys.stderr)
    sizes = ((points, "point"), (kernels, "kernel"), (times, "time"), (ridges, "ridge"))
    print(f"{', '.join(counted(*size) for size in sizes)}\npredictions  {target}")
    return 0


def _predict(run: RunDir, values: dict[str, str | None], source: str, choose: Choose) -> Predictions:
    if run.config.kernel.kind == "gram":  # read in place
        of_points, x = values["data.new_diagonal"], open_given(source, "data.new", 2)
        diagonal = None if of_points is None else open_given(of_points, "data.new_diagonal", 1)
        return predict_new(run, x, diagonal=diagonal)
    return predict_new(run, read_new(source), diagonal=values["data.new_diagonal"], choose=choose)


def _executor(run: RunDir, kind: str | None, seconds: float, session: Session) -> Executor | None:
    """Return the executor that the user named, or None for this process.

    By default, long work uses the run's executor and short work this process.
    """
    stored = run.config.cluster.kind
    chosen = kind or (stored if seconds > _LONG else "serial")
    other = "serial" if chosen != "serial" else stored if stored != "serial" else "local"
    why = f"about {seconds:,.0f} s of one core for the kernel of the new points"
    echo(f"cluster  {chosen}: {why}{'' if kind else f'; set cluster={other} to use that instead'}")
    if chosen == "serial":
        return None
    config = dataclasses.replace(run.config, cluster=dataclasses.replace(run.config.cluster, kind=chosen))
    return session.executor(config)
