"""The phase diagram and what depth does, as one figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterMathtext

from ntkpipe.report.style import BLUE, GREY, INK, PAGE_WIDTH, PALETTE, VERMILLION, literal, render

_LEVELS = (2.0, 5.0, 10.0, 20.0)
_RANGE = (1.0, 1000.0)


@dataclass(frozen=True)
class PhasePicture:
    """What is drawn.

    Args:
        title: names the nonlinearity.
        w_std: axis of the diagram, `(w,)`.
        b_std: axis of the diagram, `(b,)`.
        xi_c: correlation length, `(b, w)`; NaN where the variance does not settle, infinite at criticality.
        line: `(w_std, b_std)` of the critical line, each a stretch that is one line; a point of one entry.
        point: the user's `(w_std, b_std)`.
        correlations: from the first correlation to those after 1, 2, ... layers.
        condition: of the NTK of `inputs` inputs after 1, 2, ... layers; empty where the user's point has no phase.
        inputs: number of them.
        remark: why there are no curves.
    """

    title: str
    w_std: np.ndarray
    b_std: np.ndarray
    xi_c: np.ndarray
    line: list[tuple[np.ndarray, np.ndarray]]
    point: tuple[float, float]
    correlations: Mapping[float, np.ndarray] = field(default_factory=dict)
    condition: np.ndarray = field(default_factory=lambda: np.empty(0))
    inputs: int = 100
    remark: str = ""


def write_phase_figure(picture: PhasePicture, folder: Path, name: str = "phase") -> tuple[Path, Path]:
    """As PNG and SVG in a folder, which is created."""
    return render(lambda: _draw(picture), folder, name)


def _draw(picture: PhasePicture) -> Figure:
    figure = Figure(figsize=(PAGE_WIDTH, 3.5), layout="constrained")
    left, right = np.asarray(figure.subfigures(1, 2, width_ratios=(1.35, 1.0)))
    _diagram(left.subplots(), picture)
    upper, lower = right.subplots(2, 1, sharex=True)
    _curves(upper, lower, picture)
    return figure


def _diagram(axes: Axes, picture: PhasePicture) -> None:
    shown = np.clip(np.where(np.isinf(picture.xi_c), _RANGE[1], picture.xi_c), *_RANGE)
    axes.set_facecolor("#F3F3F3")
    mesh = axes.pcolormesh(
        picture.w_std, picture.b_std, shown, norm=LogNorm(*_RANGE), cmap="viridis", shading="nearest"
    )
    mesh.set_rasterized(True)
    if np.isfinite(shown).any():
        contours = axes.contour(picture.w_std, picture.b_std, shown, levels=_LEVELS, colors="white", linewidths=0.5)
        axes.clabel(contours, fontsize=6, fmt=lambda value: f"{value:g}")
    for position, (w_std, b_std) in enumerate(picture.line):
        label = "critical" if position == 0 else None
        if len(w_std) == 1:
            axes.plot(w_std, b_std, "D", color=VERMILLION, markersize=7, label=label, clip_on=False, zorder=5)
        else:
            axes.plot(w_std, b_std, color=VERMILLION, linewidth=2.0, label=label)
    axes.plot(
        *picture.point,
        "*",
        color="white",
        markeredgecolor=INK,
        markersize=12,
        label="this network",
        zorder=6,
        clip_on=False,
    )
    axes.set_xlim(picture.w_std[0], picture.w_std[-1])
    axes.set_ylim(picture.b_std[0], picture.b_std[-1])
    axes.grid(visible=False)
    axes.set_xlabel("w_std")
    axes.set_ylabel("b_std")
    literal(axes.set_title(picture.title))
    if np.isnan(picture.xi_c).any():
        axes.plot([], [], "s", color="#DDDDDD", label="variance does not settle")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, -0.32), ncols=3, handletextpad=0.4, columnspacing=1.0)
    bar = axes.figure.colorbar(mesh, ax=axes, extend="both", format=LogFormatterMathtext())
    bar.set_label("correlation length $\\xi_c$ in layers")


def _curves(upper: Axes, lower: Axes, picture: PhasePicture) -> None:
    for axes, text in ((upper, "correlation c"), (lower, f"NTK condition\nof {picture.inputs} inputs")):
        axes.set_ylabel(text)
    lower.set_xlabel("linear layers")
    if not len(picture.condition):
        for axes in (upper, lower):
            axes.set_axis_off()
        literal(upper.text(0.0, 0.5, picture.remark, transform=upper.transAxes, color=GREY, wrap=True, va="top"))
        return
    upper.set_xscale("log")
    for colour, (start, curve) in zip(PALETTE, picture.correlations.items(), strict=False):
        upper.plot(np.arange(1, len(curve) + 1), curve, color=colour, label=f"{start:g}")
    upper.set_ylim(-0.02, 1.02)
    upper.legend(
        title="inputs with c =",
        ncols=len(picture.correlations),
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        columnspacing=0.8,
        handlelength=1.2,
    )
    lower.plot(np.arange(1, len(picture.condition) + 1), picture.condition, color=BLUE)
    lower.set_yscale("log")
