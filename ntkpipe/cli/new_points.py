"""`ntkpipe predict run_dir=DIR data.new=FILE`: new points by a finished run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ntkpipe.cli.arguments import settings, truth
from ntkpipe.cli.commands import COMMANDS
from ntkpipe.data.given_array import open_given
from ntkpipe.data.new_points import read_new
from ntkpipe.errors import ConfigError
from ntkpipe.predictions.export import FORMATS, export_predictions
from ntkpipe.run.opened import open_run


def predict_new_points(arguments: Sequence[str]) -> int:
    """Predict them, write the predictions, and say where; returns the exit code."""
    known = {**COMMANDS["predict"].defaults(), "run_dir": None, "store.url": None}
    values = settings(arguments, known, "predict")
    if not values["run_dir"]:
        raise ConfigError("data.new needs run_dir=DIR, the folder of a finished run")
    source = Path(str(values["data.new"]))
    target = Path(values["path"] or f"{source.stem}-predictions.csv").expanduser()
    format = target.suffix.lower().removeprefix(".")
    if format not in FORMATS:
        raise ConfigError(f"path={target} must end in one of {', '.join(f'.{one}' for one in FORMATS)}")
    overwrite = truth("overwrite", str(values["overwrite"]))
    if target.exists() and not overwrite:
        raise ConfigError(f"{target} exists and is left as it is: choose another path, or set overwrite=true")
    run = open_run(values["run_dir"], store=values["store.url"])
    if run.config.kernel.kind == "gram":  # read in place
        of_points, x = values["data.new_diagonal"], open_given(str(source), "data.new", 2)
        diagonal = None if of_points is None else open_given(of_points, "data.new_diagonal", 1)
        made = run.predict(x, diagonal=diagonal)
    else:
        made = run.predict(read_new(str(source)), diagonal=values["data.new_diagonal"])
    export_predictions(made, target, format, overwrite=overwrite)
    kernels, times, ridges, points, _ = made.shape
    for text in made.attributes.get("warnings", ()):
        print(f"warning  {text}", file=sys.stderr)
    print(f"{points:,} points, {kernels} kernels, {times} times, {ridges} ridges\npredictions  {target}")
    return 0
