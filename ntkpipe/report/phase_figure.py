"""Draws the phase diagram and the effect of depth."""

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
    """The data of the figure.

    Args:
        title: title of the diagram, which names the nonlinearity.
        w_std: values on the horizontal axis, `(w,)`.
        b_std: values on the vertical axis, `(b,)`.
        xi_c: correlation length in layers, `(b, w)`; NaN if the variance has no fixed point, infinite at criticality.
        line: pieces of the critical line, each as arrays `(w_std, b_std)`. A piece with one entry is a point.
        point: the user's `(w_std, b_std)`.
        correlations: correlations after 1, 2, ... layers, by the correlation of the inputs.
        ratios: NTK of two inputs over that of one, after 1, 2, ... layers, by the correlation of the inputs.
        lost: depth from which a dtype cannot hold deviations of c, by its name.
        condition: condition numbers of the NTK after 1, 2, ... layers; empty if the user's point has no phase.
        inputs: number of inputs of that NTK.
        remark: the reason why there are no curves.
    """

    title: str
    w_std: np.ndarray
    b_std: np.ndarray
    xi_c: np.ndarray
    line: list[tuple[np.ndarray, np.ndarray]]
    point: tuple[float, float]
    correlations: Mapping[float, np.ndarray] = field(default_factory=dict)
    ratios: Mapping[float, np.ndarray] = field(default_factory=dict)
    lost: Mapping[str, float] = field(default_factory=dict)
    condition: np.ndarray = field(default_factory=lambda: np.empty(0))
    inputs: int = 100
    remark: str = ""


def write_phase_figure(picture: PhasePicture, folder: Path) -> tuple[Path, Path]:
    """Write the figure as PNG and SVG into a folder, which is created if absent; returns both paths."""
    return render(lambda: _draw(picture), folder, "phase")


def _draw(picture: PhasePicture) -> Figure:
    figure = Figure(figsize=(PAGE_WIDTH, 4.2), layout="constrained")
    left, right = np.asarray(figure.subfigures(1, 2, width_ratios=(1.35, 1.0)))
    _diagram(left.subplots(), picture)
    upper, middle, lower = right.subplots(3, 1, sharex=True)
    _curves(upper, middle, lower, picture)
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
        axes.plot([], [], "s", color="#DDDDDD", label="no fixed point of the variance")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, -0.32), ncols=3, handletextpad=0.4, columnspacing=1.0)
    bar = axes.figure.colorbar(mesh, ax=axes, extend="both", format=LogFormatterMathtext())
    bar.set_label("correlation length $\\xi_c$ in layers")


def _curves(upper: Axes, middle: Axes, lower: Axes, picture: PhasePicture) -> None:
    all_axes = (upper, middle, lower)
    for axes, text in zip(
        all_axes,
        ("correlation c", "NTK of two inputs\nover that of one", f"NTK condition\nof {picture.inputs} inputs"),
        strict=True,
    ):
        axes.set_ylabel(text)
    lower.set_xlabel("linear layers")
    if not len(picture.condition):
        for axes in all_axes:
            axes.set_axis_off()
        literal(upper.text(0.0, 0.5, picture.remark, transform=upper.transAxes, color=GREY, wrap=True, va="top"))
        return
    upper.set_xscale("log")
    for axes, curves in ((upper, picture.correlations), (middle, picture.ratios)):
        for colour, (start, curve) in zip(PALETTE, curves.items(), strict=False):
            axes.plot(np.arange(1, len(curve) + 1), curve, color=colour, label=f"{start:g}")
        axes.set_ylim(-0.02, 1.02)
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
    for dtype, depth in picture.lost.items():
        if 1.0 < depth <= len(picture.condition):
            for axes in all_axes:
                axes.axvline(depth, color=GREY, linewidth=0.8, linestyle=(0, (4, 2)))
            middle.text(
                depth,
                0.5,
                f"{dtype} has lost c",
                rotation=90,
                fontsize=6,
                color=GREY,
                ha="right",
                va="center",
                transform=middle.get_xaxis_transform(),
            )
