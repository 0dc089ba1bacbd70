"""Draws the figures of `ntkpipe validate`.

They show networks with the predicted mean and spread, errors against the width, movement of the kernel, training
curves, and large learning rates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ntkpipe.finite.claims import Claim
from ntkpipe.report.style import BLUE, GREY, INK, LINE_STYLES, PAGE_WIDTH, PALETTE, number, render

_SHOWN = 30  # largest number of networks in one panel
_PANELS = 4


@dataclass(frozen=True, eq=False)
class Shown:
    """The data of the figures.

    Args:
        steps: S numbers of training steps, starting with 0.
        places: (q,) positions on the path between two training images, from 0 to 1.
        paths: by width, (networks, S, q) values of one output along the path. Networks of the last width are drawn.
        mean: (S, q) predicted means.
        variance: (S, q) predicted variances.
        output: name of the output.
        ends: targets of the output at both images.
        claims: fitted claims on how quantities depend on width or output scale.
        drift: by width, (networks, S) relative movement of the kernel.
        curves: by width and kind (`finite`, `linearised`, `infinite`), series such as `test_loss` of length S.
        rates: rows of `phases_of`; empty without large rates.
        labelled: settings outside the theorem's assumptions.
    """

    steps: tuple[int, ...]
    places: np.ndarray = field(default_factory=lambda: np.zeros(0))
    paths: Mapping[str, np.ndarray] = field(default_factory=dict)
    mean: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    variance: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    output: str = ""
    ends: tuple[float, float] = (0.0, 0.0)
    claims: Sequence[Claim] = ()
    drift: Mapping[str, np.ndarray] = field(default_factory=dict)
    curves: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]] = field(default_factory=dict)
    rates: Sequence[Mapping[str, Any]] = ()
    labelled: Sequence[str] = ()


def write_validation_figures(shown: Shown, folder: Path) -> list[Path]:
    """Write the figures as PNG and SVG into a folder, and return the paths of the PNGs."""
    if shown.rates:
        return [render(lambda: _draw_rates(shown), folder, "large_rates")[0]]
    made = [
        render(lambda: _draw_members(shown), folder, "members")[0],
        render(lambda: _draw_curves(shown), folder, "training")[0],
    ]
    for against, name in (("width", "width"), ("output scale", "output_scale")):
        if any(one.against == against and len(one.at) > 1 for one in shown.claims):
            made.append(render(lambda against=against: _draw_claims(shown, against), folder, name)[0])
    return made


def _draw_members(shown: Shown) -> Figure:
    looked = np.unique(np.round(np.linspace(0, len(shown.steps) - 1, _PANELS)).astype(int))
    figure = Figure(figsize=(PAGE_WIDTH, 2.3), layout="constrained")
    panels = np.atleast_1d(np.asarray(figure.subplots(1, len(looked), sharey=True)))
    name, members = list(shown.paths.items())[-1]
    for axes, s in zip(panels, looked, strict=True):
        mean, spread = shown.mean[s], 2.0 * np.sqrt(shown.variance[s])
        axes.fill_between(shown.places, mean - spread, mean + spread, color=BLUE, alpha=0.18, linewidth=0)
        for k, one in enumerate(members[:_SHOWN, s]):
            label = f"networks, {name}" if k == 0 else None
            axes.plot(shown.places, one, color=GREY, linewidth=0.5, alpha=0.7, label=label)
        axes.plot(shown.places, mean, color=BLUE, label="predicted mean and 2 sd")
        axes.plot([0, 1], shown.ends, "o", color=INK, label="targets", markersize=3.5)
        axes.set_title(f"{shown.steps[s]:,} steps")
        axes.set_xlabel("between two images")
    panels[0].set_ylabel(f"output {shown.output}")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _draw_claims(shown: Shown, against: str) -> Figure:
    claims = [one for one in shown.claims if one.against == against and len(one.at) > 1]
    columns = 3 if len(claims) > 4 else min(2, len(claims))
    rows = -(-len(claims) // columns)
    figure = Figure(figsize=(PAGE_WIDTH, 2.3 * rows + 0.2), layout="constrained")
    panels = np.atleast_1d(np.asarray(figure.subplots(rows, columns))).ravel()
    for axes, claim in zip(panels, claims, strict=False):
        _one_claim(axes, claim)
    for axes in panels[len(claims) :]:
        axes.set_visible(False)
    return figure


def _one_claim(axes: Axes, claim: Claim) -> None:
    at, values, errors = np.array(claim.at), np.array(claim.values), np.array(claim.errors)
    sizes = np.abs(values)
    good = np.isin(at, claim.used) if claim.used else sizes > errors
    axes.errorbar(at[good], sizes[good], errors[good], fmt="o", color=BLUE, capsize=2, label="measured")
    if (~good).any():
        # The marker is the value plus two standard errors, which the true value does not exceed.
        axes.plot(at[~good], sizes[~good] + 2 * errors[~good], "v", color=GREY, label="no larger than")
    anchor = (at[good][0], sizes[good][0]) if good.any() else (at[0], sizes[0] + 2 * errors[0])
    expected = anchor[1] * (at / anchor[0]) ** claim.expected
    axes.plot(at, expected, color=INK, linestyle=LINE_STYLES[1], linewidth=1.0, label=f"slope {claim.expected:g}")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(at, [f"{one:g}" for one in at])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.tick_params(axis="y", labelsize=7)
    found = "undecided" if claim.verdict == "undecided" else ""
    found = f"{claim.exponent:.2f} ± {claim.exponent_error:.2f}" if claim.exponent is not None and not found else found
    axes.set_title(f"{_SHORT.get(claim.name.rstrip('_0123456789'), claim.quantity)}\n{found}", fontsize=8)
    axes.set_xlabel(claim.against)
    axes.legend(loc="lower left", fontsize=6.5)


_SHORT = {
    "kernel": "Initial kernel − infinite kernel",
    "drift": "Movement of the kernel",
    "linearisation": "Network − its linearisation",
    "flow": "Network − infinite flow from its start",
    "mean": "Bias of the mean",
    "variance": "Variance / predicted − 1",
    "lazy": "Network − its linearisation",
    "lazy_drift": "Movement of the kernel",
}


def _draw_curves(shown: Shown) -> Figure:
    kinds = [
        name for name in ("test_loss", "test_accuracy") if any(name in one["finite"] for one in shown.curves.values())
    ]
    figure = Figure(figsize=(PAGE_WIDTH, 2.5), layout="constrained")
    panels = np.atleast_1d(np.asarray(figure.subplots(1, len(kinds) + 1)))
    steps = np.array(shown.steps, dtype=float)
    colours = {name: PALETTE[k % len(PALETTE)] for k, name in enumerate(shown.curves)}
    for name, moved in shown.drift.items():
        panels[0].plot(
            steps[1:], np.sqrt(np.square(moved).mean(axis=0))[1:], color=colours[name], marker="o", markersize=3
        )
    panels[0].set_title("Movement of the kernel, relative")
    if any((moved > 0).any() for moved in shown.drift.values()):  # the kernel does not move if only the readout trains
        panels[0].set_yscale("log")
    panels[0].yaxis.set_minor_formatter(NullFormatter())
    for axes, kind in zip(panels[1:], kinds, strict=True):
        for name, of_kind in shown.curves.items():
            for series, style in (
                ("finite", LINE_STYLES[0]),
                ("linearised", LINE_STYLES[1]),
                ("infinite", LINE_STYLES[2]),
            ):
                if kind in of_kind.get(series, {}):
                    axes.plot(steps[1:], of_kind[series][kind][1:], color=colours[name], linestyle=style)
        axes.set_title("Test loss" if kind == "test_loss" else "Test accuracy")
    for axes in panels:
        axes.set_xscale("log")
        axes.set_xlabel("steps")
    for name, colour in colours.items():
        panels[0].plot([], [], color=colour, label=name)
    for series, style in (("networks", 0), ("linearised", 1), ("infinite, from their starts", 2)):
        panels[0].plot([], [], color=INK, linestyle=LINE_STYLES[style], label=series)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def _draw_rates(shown: Shown) -> Figure:
    figure = Figure(figsize=(PAGE_WIDTH, 2.9), layout="constrained")
    first, second, third = np.asarray(figure.subplots(1, 3))
    viridis = colormaps["viridis"]
    widths = sorted({int(row["width"]) for row in shown.rates})
    widest = [row for row in shown.rates if row["width"] == widths[-1]]
    for k, row in enumerate(widest):
        colour, label = viridis(0.9 * k / max(1, len(widest) - 1)), number(row["rate"])
        loss = np.array(row["loss"], dtype=float)
        first.plot(shown.steps, np.where(np.isfinite(loss) & (loss < 1e6), loss, np.nan), color=colour, label=label)
        curved = np.array(row["curvature"], dtype=float) * row["rate"] / row["curvature_start"]
        second.plot(shown.steps, np.where(np.isfinite(curved) & (curved < 1e3), curved, np.nan), color=colour)
    for axes in (first, second):
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlabel("steps")
        axes.set_yscale("log")
    first.set_title(f"Loss, width {widths[-1]}")
    second.set_title("Rate x curvature")
    second.axhline(2.0, color=INK, linestyle=LINE_STYLES[1], linewidth=0.8)
    handles, labels = first.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        title="rate in units of 1 / initial curvature",
        loc="outside lower center",
        ncols=11,
        columnspacing=1.2,
    )
    for k, width in enumerate(widths):
        rows = [row for row in shown.rates if row["width"] == width and row["curvature_end_over_start"] is not None]
        at = [row["rate"] for row in rows]
        third.plot(
            at,
            [row["curvature_end_over_start"] for row in rows],
            "o-",
            color=PALETTE[k % len(PALETTE)],
            label=f"width {width}",
        )
    for edge in (2.0, 4.0):
        third.axvline(edge, color=INK, linestyle=LINE_STYLES[1], linewidth=0.8)
    third.set_title("Final curvature / initial curvature")
    third.set_xlabel("rate")
    third.set_ylim(bottom=0)
    third.legend(loc="best", fontsize=7)
    return figure
