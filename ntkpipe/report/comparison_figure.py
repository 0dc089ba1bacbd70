"""One curve a run: the measure of the test points over training time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ntkpipe.predictions.shown import ShownFigure
from ntkpipe.report.style import LINE_STYLES, PALETTE, literal, number, short

_NAMES = {"accuracy": "test accuracy", "rmse": "test root mean squared error"}
_MOST = 12  # curves; more cannot be told apart


def draw_comparison(measure: str, labels: Sequence[str], curves: Sequence[Sequence[tuple[float, float]]]) -> Figure:
    """Draw the first curves, which are those of the best runs.

    Args:
        measure: what is compared.
        labels: of the curves.
        curves: (time, value) pairs, by time; of one time alone a point.
    """
    times = sorted({time for curve in curves for time, _ in curve})
    places = {time: float(k) for k, time in enumerate(times)}
    shown = min(len(curves), _MOST)
    figure = ShownFigure(figsize=(7.0, 3.4), layout="constrained")
    axes = figure.subplots()
    for k in range(shown):
        x, y = np.array([(places[time], value) for time, value in curves[k]]).T
        style = LINE_STYLES[k // len(PALETTE) % len(LINE_STYLES)]
        axes.plot(
            x, y, color=PALETTE[k % len(PALETTE)], linestyle=style, marker="o", markersize=3, label=short(labels[k], 48)
        )
    # Times may be 0 and inf: they stand side by side.
    axes.set_xticks(list(places.values()), ["∞" if math.isinf(time) else number(time) for time in times], rotation=90)
    axes.set_xlabel("training time (gradient steps)")
    axes.set_ylabel(_NAMES[measure])
    title = f"the best {shown} of {len(curves)}" if shown < len(curves) else None
    legend = axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title=title, handlelength=2.8)
    for text in legend.get_texts():
        literal(text)
    return figure
