"""Draws a search over a kernel's parameters: two of them as a plane, each one separately, and the ridge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.tri import Triangulation

from ntkpipe.report.style import BLUE, GREY, VERMILLION, render

_MEASURES = {"likelihood": "-log evidence per target value", "loo": "leave-one-out error", "held_out": "held-out error"}
# Quantile at which scores are cut off, because values far above the best would hide differences near it.
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
    """Draw and write `surface.png` and `surface.svg`, and return the path of the PNG.

    Args:
        names: names of the d parameters.
        points: (t, d) trials, the best first.
        values: (t,) scores of the trials; smaller is better.
        by: name of the score: `likelihood`, `loo` or `held_out`.
        logarithmic: (d,) whether the axis of a parameter is logarithmic.
        ridges: (R,) relative ridges.
        curve: (R,) scores of the best trial by ridge; empty if unknown.
        folder: folder of the files, created if absent.
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
            one.set_xlabel("relative ridge, at the best trial")
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
    _shade(axes, points, np.minimum(values, limit), logarithmic)
    made = axes.scatter(
        points[order, 0], points[order, 1], c=np.minimum(values[order], limit), cmap="viridis_r", s=22, linewidths=0
    )
    axes.plot(points[0, 0], points[0, 1], "*", color=VERMILLION, markersize=11, label="best")
    for axis, name, log in ((axes.xaxis, names[0], logarithmic[0]), (axes.yaxis, names[1], logarithmic[1])):
        axis.set_label_text(name)
        if log:
            (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
            _few_ticks(axis)
    for axis, values_of in ((axes.xaxis, points[:, 0]), (axes.yaxis, points[:, 1])):
        _whole_ticks(axis, values_of)
    figure.colorbar(made, ax=axes, label=_MEASURES[by])
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)


def _shade(axes: Any, points: np.ndarray, values: np.ndarray, logarithmic: Sequence[bool]) -> None:
    """Shade the surface between trials that differ from the best only in these two parameters.

    Nothing is drawn if these trials are too few or not spread over a plane.
    """
    alike = (points[:, 2:] == points[0, 2:]).all(axis=1)
    chosen, worth = points[alike, :2], values[alike]
    if min(len(np.unique(chosen[:, k])) for k in (0, 1)) < 4 or len(worth) < 12:
        return
    flat = np.where(logarithmic[:2], np.log(np.where(chosen > 0, chosen, 1.0)), chosen)
    corners = Triangulation(*(flat - flat.min(axis=0)).T).triangles
    shown = Triangulation(*chosen.T, triangles=corners)
    axes.tricontourf(shown, worth, levels=12, cmap="viridis_r", alpha=0.5, zorder=0)
    axes.use_sticky_edges = False


def _few_ticks(axis: Any) -> None:
    """Put ticks at 1, 2 and 5 of every decade if the axis spans less than two decades, otherwise at powers of ten."""
    low, high = sorted(axis.get_view_interval())
    if high < 100 * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _whole_ticks(axis: Any, values: np.ndarray) -> None:
    """Put ticks at whole numbers if all tried values of the parameter are whole."""
    if (values == np.round(values)).all() and axis.get_scale() == "linear":
        axis.set_major_locator(MaxNLocator(integer=True))


def _line(axes: Any, name: str, x: np.ndarray, values: np.ndarray, by: str, *, log: bool) -> None:
    axes.plot(x, values, "o", color=GREY, markersize=3)
    axes.plot(x[0], values[0], "*", color=VERMILLION, markersize=10)
    span = float(np.quantile(values, _SHOWN) - values.min())
    if span > 0:
        axes.set_ylim(values.min() - 0.08 * span, values.min() + 1.15 * span)
    if log:
        axes.set_xscale("log")
        _few_ticks(axes.xaxis)
    _whole_ticks(axes.xaxis, x)
    axes.set_xlabel(name)
    axes.set_ylabel(_MEASURES[by])
