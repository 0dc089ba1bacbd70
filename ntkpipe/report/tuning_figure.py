"""The surface over the numbers of a kernel that were tried: two of them as a plane, then each by itself, and the ridge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ntkpipe.report.style import BLUE, GREY, VERMILLION, render

_MEASURES = {"likelihood": "-log evidence per number", "loo": "leave-one-out error", "held_out": "held-out error"}
# Values far above the best would leave nothing to be told apart near it.
_SHOWN = 0.9


def write_tuning_figure(
    names: Sequence[str],
    points: np.ndarray,
    values: np.ndarray,
    by: str,
    *,
    logarithmic: Sequence[bool],
    ridges: np.ndarray,
    curve: np.ndarray,
    folder: Path,
) -> Path:
    """Draw and write `surface.png` and `.svg`.

    Args:
        names: of the d parameters.
        points: (t, d) trials, the best first.
        values: (t,) their worth, the smaller the better.
        by: what that is.
        logarithmic: (d,) of the axes.
        ridges: (R,) relative ridges.
        curve: (R,) worth of the best trial by ridge; empty if it is not known.
        folder: where to.
    """
    good = np.isfinite(values)

    def draw() -> Figure:
        plane = len(names) > 1
        panels = plane + len(names) + (len(curve) > 1)
        figure = Figure(figsize=(min(3.3 * panels, 13.2), 3.0), layout="constrained")
        axes = list(np.atleast_1d(figure.subplots(1, max(panels, 1))).ravel())
        shown = points[good], values[good]
        if plane:
            _plane(axes.pop(0), figure, names, *shown, logarithmic, by)
        for k, name in enumerate(names):
            _line(axes.pop(0), name, shown[0][:, k], shown[1], by, log=logarithmic[k])
        if len(curve) > 1:
            known = np.isfinite(curve)
            one = axes.pop(0)
            one.plot(ridges[known], curve[known], color=BLUE)
            best = int(np.argmin(curve))
            one.plot(ridges[best], curve[best], "*", color=VERMILLION, markersize=10)
            one.set_xscale("log")
            one.set_xlabel("relative ridge, at the best")
            one.set_ylabel(_MEASURES[by])
        return figure

    return render(draw, folder, "surface")[0]


def _plane(
    axes: Any,
    figure: Figure,
    names: Sequence[str],
    points: np.ndarray,
    values: np.ndarray,
    logarithmic: Sequence[bool],
    by: str,
) -> None:
    limit = float(np.quantile(values, _SHOWN))
    order = np.argsort(-values)
    made = axes.scatter(
        points[order, 0], points[order, 1], c=np.minimum(values[order], limit), cmap="viridis_r", s=22, linewidths=0
    )
    axes.plot(points[0, 0], points[0, 1], "*", color=VERMILLION, markersize=11, label="best")
    for axis, name, log in ((axes.xaxis, names[0], logarithmic[0]), (axes.yaxis, names[1], logarithmic[1])):
        axis.set_label_text(name)
        if log:
            (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
    figure.colorbar(made, ax=axes, label=_MEASURES[by])
    axes.legend(loc="best")


def _line(axes: Any, name: str, x: np.ndarray, values: np.ndarray, by: str, *, log: bool) -> None:
    axes.plot(x, values, "o", color=GREY, markersize=3)
    axes.plot(x[0], values[0], "*", color=VERMILLION, markersize=10)
    span = float(np.quantile(values, _SHOWN) - values.min())
    if span > 0:
        axes.set_ylim(values.min() - 0.08 * span, values.min() + 1.15 * span)
    if log:
        axes.set_xscale("log")
    axes.set_xlabel(name)
    axes.set_ylabel(_MEASURES[by])
