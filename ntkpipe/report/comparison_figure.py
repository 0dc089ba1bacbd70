"""Draws a figure with one curve per run: the measure on the test points over training time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ntkpipe.predictions.shown import ShownFigure
from ntkpipe.report.style import LINE_STYLES, PAGE_WIDTH, PALETTE, is_for_phones, literal, number, short, width_of

_NAMES = {"accuracy": "test accuracy", "rmse": "test root mean squared error"}
_MOST = 12  # number of curves; more could not be distinguished


def draw_comparison(measure: str, labels: Sequence[str], curves: Sequence[Sequence[tuple[float, float]]]) -> Figure:
    """Draw the first curves, which belong to the best runs.

    Args:
        measure: the compared measure, `accuracy` or `rmse`.
        labels: labels of the curves.
        curves: (time, value) pairs of each curve in order of time. A single time gives a point.
    """
    times = sorted({time for curve in curves for time, _ in curve})
    places = {time: float(k) for k, time in enumerate(times)}
    shown = min(len(curves), _MOST)
    figure = ShownFigure(figsize=(width_of(PAGE_WIDTH), 3.4), layout="constrained")
    axes = figure.subplots()
    for k in range(shown):
        x, y = np.array([(places[time], value) for time, value in curves[k]]).T
        style = LINE_STYLES[k // len(PALETTE) % len(LINE_STYLES)]
        axes.plot(
            x, y, color=PALETTE[k % len(PALETTE)], linestyle=style, marker="o", markersize=3, label=short(labels[k], 48)
        )
    # Times may include 0 and inf, so they are equally spaced.
    axes.set_xticks(list(places.values()), ["∞" if math.isinf(time) else number(time) for time in times], rotation=90)
    axes.set_xlabel("training time (gradient steps)")
    axes.set_ylabel(_NAMES[measure])
    title = f"the best {shown} of {len(curves)}" if shown < len(curves) else None
    if is_for_phones():
        legend = figure.legend(loc="outside lower left", title=title, handlelength=2.8)
    else:
        legend = axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title=title, handlelength=2.8)
    for text in legend.get_texts():
        literal(text)
    return figure
