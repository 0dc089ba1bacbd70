"""Draws the errors by which a time and a ridge were chosen."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ntkpipe.predictions.choice import selection_of, time_of
from ntkpipe.predictions.schema import Predictions
from ntkpipe.report.curves import TimeAxis, mark_chosen
from ntkpipe.report.style import (
    KERNEL_MARKERS,
    LINE_STYLES,
    PAGE_WIDTH,
    columns_of_legend,
    kernel_colour,
    kernel_name,
    number,
    row_of_panels,
    tint,
)


def selection_curves(predictions: Predictions) -> Figure:
    """Draw accuracy and squared error on held-out training points by time or ridge, and mark the chosen point."""
    panels = [("mse", "mean squared error")]
    records = selection_of(predictions)["kernels"]
    if all("accuracy" in record for record in records.values()):
        panels.insert(0, ("accuracy", "accuracy"))
    figure, drawn = row_of_panels(len(panels), 3.1, width=PAGE_WIDTH if len(panels) == 2 else 4.2)
    for axes, (metric, label) in zip(drawn, panels, strict=True):
        for k, (name, record) in enumerate(records.items()):
            _draw(axes, name, k, record, metric)
        first = next(iter(records.values()))
        if len(first["times"]) > 1:
            TimeAxis(np.array([time_of(t) for t in first["times"]])).draw(axes)
        else:
            axes.set_xticks(range(len(first["ridges"])), [number(r) for r in first["ridges"]])
            scale = "relative ridge" if predictions.ridge_scale == "relative" else "ridge"
            axes.set_xlabel(f"{scale} (at t = {number(time_of(first['times'][0]))})")
        if metric == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
        axes.set_ylabel(label)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if len(handles) > 1:
        figure.legend(
            handles, labels, loc="outside lower center", ncols=columns_of_legend(len(handles), 4), handlelength=2.6
        )
    return figure


def _draw(axes: Axes, name: str, k: int, record: dict[str, Any], metric: str) -> None:
    values = np.array([[math.nan if v is None else v for v in row] for row in record[metric]])
    errors = np.array([[math.nan if v is None else v for v in row] for row in record[f"{metric}_standard_error"]])
    times = np.array([time_of(t) for t in record["times"]])
    marker, best = KERNEL_MARKERS.get(name, "D"), record["best"]
    if len(times) > 1:
        x = TimeAxis(times).positions
        for r, ridge in enumerate(record["ridges"]):
            colour = tint(kernel_colour(name, k), r)
            label = kernel_name(name) + (f", ridge {number(ridge)}" if len(record["ridges"]) > 1 else "")
            axes.plot(
                x, values[:, r], color=colour, marker=marker, markersize=3, linestyle=LINE_STYLES[r % len(LINE_STYLES)],
                markerfacecolor=colour if r == 0 else "white", label=label,
            )  # fmt: skip
    else:
        x = np.arange(len(record["ridges"]), dtype=float)
        axes.errorbar(
            x, values[0], yerr=errors[0], color=kernel_colour(name, k), marker=marker, markersize=4, capsize=2,
            elinewidth=0.8, label=kernel_name(name),
        )  # fmt: skip
    if best is None:
        return
    t, r = record["times"].index(best["time"]), record["ridges"].index(best["ridge"])
    mark_chosen(axes, float(x[t] if len(times) > 1 else x[r]), float(values[t, r]))
