"""A learning curve from the runs of a sweep over training sizes: tables, figure and page in its folder."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ntkpipe.dynamics.spectrum import default_sizes
from ntkpipe.predictions.doubt import doubt_of, legend
from ntkpipe.predictions.read import read_predictions
from ntkpipe.predictions.schema import Predictions
from ntkpipe.report.drawing import can_draw, drawing, without_figures
from ntkpipe.report.learning_curve import Curve, Predicted, learning_curves
from ntkpipe.run.prepare import reopen
from ntkpipe.run.run_dir import RunDir
from ntkpipe.run.spectrum import spectrum_of_run
from ntkpipe.run.sweep import Sweep
from ntkpipe.storage.plain import json_ready
from ntkpipe.storage.replace import replace_text
from ntkpipe.tasks.serial import SerialExecutor

_FIELDS: tuple[str, ...] = (
    "train_size",
    "kernel",
    "ridge",
    "point",
    "time",
    "accuracy",
    "error",
    "error_se",
    "mse",
    "mse_se",
)


_POINTS = {"inf": "t = inf", "best": "t best", "only": "its time"}


def write_learning_curve(sweep: Sweep, folder: Path | None = None) -> list[str]:
    """Write `learning_curve.csv`, `.json` (the fits), `.png`, `.svg` and `.html` for the runs that have predictions.

    Args:
        sweep: the sweep over training sizes.
        folder: target folder; None is the sweep's own.

    Returns:
        Lines of a table and the page's path; empty if no run has predictions yet.

    Raises:
        ReportError: if the page could not be made; the tables are written before.
    """
    done: list[tuple[int, Predictions]] = []
    left = []
    for path in sweep.runs:
        run = sweep.open(path)
        if run is None or run.receipt("predict") is None:
            left.append(path.name)
            continue
        size = int(run.require("data")["n_train"])
        done.append((size, read_predictions(path / "predictions.zarr", covariance=False)))
    if not done:
        return []
    curves = learning_curves(done)
    target = folder or sweep.path
    replace_text(target / "learning_curve.csv", _csv(curves))
    replace_text(
        target / "learning_curve.json",
        json.dumps(json_ready([_record(c) for c in curves]), indent=1, allow_nan=False),
    )
    theory = _theory(sweep, done) if sweep.config is not None and sweep.config.predict.theory else []
    if theory:
        replace_text(target / "learning_theory.csv", _theory_csv(theory))
        replace_text(target / "learning_extrapolated.csv", _extrapolated_csv(theory))
    notes = [f"not finished yet: {', '.join(left)}"] if left else []
    notes += sorted({c.why for c in curves if c.why})
    notes += [note for size, predictions in done for note in _doubts(size, predictions)]
    if not can_draw():
        line = without_figures(f"ntkpipe report run_dir={sweep.path}")
        return [*_lines(curves), f"learning     {target / 'learning_curve.csv'}   ({line})"]
    with drawing(f"ntkpipe report run_dir={sweep.path}"):
        from ntkpipe.report.learning_page import write_learning_page

        page = write_learning_page(curves, _title(sweep), notes, target, theory)
    return [*_lines(curves), f"learning     {page}   (learning_curve.csv, .json, .png and .svg beside it)"]


def _theory(sweep: Sweep, done: Sequence[tuple[int, Predictions]]) -> list[Predicted]:
    """Return the errors that the spectrum of the largest run predicts for smaller training sizes after convergence."""
    largest, predictions = max(done, key=lambda one: one[0])
    if not math.isinf(predictions.times[-1]):
        return []
    run = RunDir.open(sweep.path / f"train_size={largest}", store=sweep.store)
    context = reopen(run)
    asked = sorted({n for n, _ in done if n < largest} | set(default_sizes(largest)))
    low = min(n for n, _ in done)
    sizes = [n for n in asked if n >= low]
    made = []
    for name in predictions.kernels:
        found = spectrum_of_run(run, SerialExecutor(), name, context=context)
        for position, ridge in enumerate(predictions.ridges.tolist()):
            curve = found.learning_curve(sizes, position)
            values, errors = ([getattr(one, field) for one in curve] for field in ("test_mse", "test_mse_error"))
            further = tuple(found.beyond(position))
            made.append(Predicted(name, ridge, np.array(sizes), np.array(values), np.array(errors), largest, further))
    return made


def _theory_csv(theory: Sequence[Predicted]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["train_size", "kernel", "ridge", "predicted_mse", "predicted_mse_se"])
    for one in theory:
        for n, value, error in zip(one.sizes, one.values, one.errors, strict=True):
            writer.writerow([int(n), one.kernel, one.ridge, float(value), float(error)])
    return text.getvalue()


def _extrapolated_csv(theory: Sequence[Predicted]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["train_size", "kernel", "ridge", "extrapolated_mse", "low", "high"])
    for one in theory:
        for point in one.further:
            writer.writerow([point.n, one.kernel, one.ridge, point.test_mse, point.low, point.high])
    return text.getvalue()


def _doubts(size: int, predictions: Predictions) -> list[str]:
    """Return a line per kernel and ridge about values of one training size that may be entirely wrong."""
    notes = []
    for k, kernel in enumerate(predictions.kernels):
        for r, ridge in enumerate(predictions.ridges.tolist()):
            doubts = [doubt_of(predictions, (k, t, r)) for t in range(len(predictions.times))]
            when = ", ".join(f"{t:g}" for t, doubt in zip(predictions.times, doubts, strict=True) if doubt)
            notes += [
                f"{size:,} points, {kernel}, ridge {ridge:g}, t = {when}: {text}" for text in legend(doubts) if when
            ]
    return notes


def _title(sweep: Sweep) -> str:
    config = sweep.config
    if config is None:
        return "Learning curve"
    source = config.data.kind if config.data.path is None else f"{config.data.kind} ({Path(config.data.path).name})"
    return f"{source}: {config.kernel.title}"


def _csv(curves: list[Curve]) -> str:
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for c in curves:
        for n, time, value, error in zip(c.sizes, c.times, c.values, c.errors, strict=True):
            # The best time may differ between measures; each then gets its own line.
            key = (int(n), c.kernel, c.ridge, c.point, float(time))
            row = rows.setdefault(key, dict(zip(_FIELDS, key, strict=False)))
            row |= {c.measure: float(value), f"{c.measure}_se": float(error)}
            if c.measure == "error":
                row["accuracy"] = 1.0 - float(value)
    text = io.StringIO()
    writer = csv.DictWriter(text, _FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[key] for key in sorted(rows, key=lambda key: (*key[1:4], key[0], key[4])))
    return text.getvalue()


def _record(curve: Curve) -> dict[str, Any]:
    return {
        "kernel": curve.kernel,
        "ridge": curve.ridge,
        "point": curve.point,
        "measure": curve.measure,
        "sizes": curve.sizes.tolist(),
        "values": curve.values.tolist(),
        "fit": None if curve.fit is None else {k: _plain(v) for k, v in dataclasses.asdict(curve.fit).items()},
        "why": curve.why,
        "interval": "95%, profile likelihood over test points and the deviation of the fit",
    }


def _plain(value: float) -> float | str:
    """Return the value, or its text if it is not finite, because JSON has no infinity."""
    return value if math.isfinite(value) else str(value)


def _lines(curves: list[Curve]) -> list[str]:
    sizes = curves[0].sizes
    lines = [f"{'':<34}" + "".join(f"{f'n={n:,}':>11}" for n in sizes) + "   power law (95% interval)"]
    for c in curves:
        name = f"{c.measure} {c.kernel}, ridge {c.ridge:g}, {_POINTS[c.point]}"
        law = c.fit.text() if c.fit is not None else "none: " + c.why
        lines.append(f"{name:<34}" + "".join(f"{value:>11.4f}" for value in c.values) + f"   {law}")
    return lines
