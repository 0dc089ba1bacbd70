"""Draws the spectra of a run's kernels, the label energy by the time it is learnt, and predicted learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ntkpipe.dynamics.spectrum import TRUSTED, PredictedError, Spectrum
from ntkpipe.errors import ConfigError
from ntkpipe.report.style import (
    GREY,
    LINE_STYLES,
    PAGE_WIDTH,
    columns_of_legend,
    kernel_colour,
    kernel_name,
    number,
    render,
)


def write_spectrum_figure(
    spectra: Sequence[Spectrum],
    curves: Sequence[Sequence[Sequence[PredictedError]]],
    folder: Path,
) -> tuple[Path, Path]:
    """Write the figure as PNG and SVG, and return both paths.

    Args:
        spectra: spectra of the kernels.
        curves: predicted errors by training size, for each kernel and ridge.
        folder: folder of the files, created if absent.
    """
    return render(lambda: _draw(spectra, curves), folder, "spectrum")


def _draw(spectra: Sequence[Spectrum], curves: Sequence[Sequence[Sequence[PredictedError]]]) -> Figure:
    figure = Figure(figsize=(PAGE_WIDTH, 5.2), layout="constrained")
    (first, second), (third, fourth) = np.asarray(figure.subplots(2, 2))
    _eigenvalues(first, spectra)
    _energy(second, spectra)
    _density(third, spectra)
    _errors(fourth, spectra, curves)
    # Inside the panel a legend of several ridges would cover the curves. Long samples show how lines are dashed.
    handles, labels = fourth.get_legend_handles_labels()
    columns = columns_of_legend(len(labels), 4)
    figure.legend(handles, labels, loc="outside lower right", ncols=columns, handlelength=3.2)
    return figure


def _eigenvalues(axes: Axes, spectra: Sequence[Spectrum]) -> None:
    axes.set_title("Eigenvalues and the times at which they are learnt")
    for k, one in enumerate(spectra):
        above = one.measure.values > one.noise
        colour = kernel_colour(one.name, k)
        axes.plot(one.measure.index[above], one.measure.values[above], color=colour, label=kernel_name(one.name))
        law = one.power_laws()["eigenvalues"]
        if law is not None:
            ends = np.array([law.low, law.high])
            axes.plot(
                ends,
                law.scale * ends**-law.exponent * 1.6,
                color=colour,
                linestyle=LINE_STYLES[1],
                linewidth=1.0,
                label=f"$i^{{-{law.exponent:.2f}}}$",
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("index i")
    axes.set_ylabel("eigenvalue")
    axes.legend(loc="lower left")
    unit = spectra[0].learning_unit
    low, high = axes.get_ylim()
    right = axes.twinx()
    right.set_yscale("log")
    right.set_ylim(unit / low, unit / high)
    right.grid(visible=False)
    right.spines["right"].set_visible(True)
    right.set_ylabel("learning time, 1/(ηλ)")


def _energy(axes: Axes, spectra: Sequence[Spectrum]) -> None:
    axes.set_title("Label energy by the time it is learnt")
    for k, one in enumerate(spectra):
        values, power = one.measure.values, one.measure.power.sum(axis=1)
        above = values > one.noise
        total = float(power.sum()) or 1.0
        times = one.learning_unit / values[above]
        axes.step(
            times,
            np.cumsum(power[above]) / total,
            where="post",
            color=kernel_colour(one.name, k),
            label=kernel_name(one.name),
        )
    axes.set_xscale("log")
    axes.set_ylim(0.0, 1.02)
    axes.set_xlabel("training time in steps")
    axes.set_ylabel("share of label energy")
    axes.legend(loc="upper left")


def _density(axes: Axes, spectra: Sequence[Spectrum]) -> None:
    axes.set_title("Density of states")
    for k, one in enumerate(spectra):
        edges, states, errors = one.density()
        colour = kernel_colour(one.name, k)
        axes.stairs(states, edges, color=colour, label=kernel_name(one.name))
        shown = states > 0.0
        middle = np.sqrt(edges[:-1] * edges[1:])
        if errors.any():
            axes.errorbar(middle[shown], states[shown], errors[shown], fmt="none", ecolor=colour, elinewidth=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)
    axes.set_xlabel("eigenvalue")
    axes.set_ylabel("eigenvalues in a bin")
    axes.legend(loc="upper right")


def _errors(axes: Axes, spectra: Sequence[Spectrum], curves: Sequence[Sequence[Sequence[PredictedError]]]) -> None:
    axes.set_title("Predicted squared error (not accuracy)")
    for k, (one, of_ridges) in enumerate(zip(spectra, curves, strict=True)):
        for r, curve in enumerate(of_ridges):
            sizes = [point.n for point in curve]
            label = kernel_name(one.name) + (f", ridge {number(one.ridges[r])}" if len(of_ridges) > 1 else "")
            axes.plot(
                sizes,
                [point.test_mse for point in curve],
                marker="o",
                color=kernel_colour(one.name, k),
                linestyle=LINE_STYLES[r % len(LINE_STYLES)],
                label=label,
            )
            checked = one.cross_validated(r)
            if checked.leave_one_out is not None:
                axes.errorbar(
                    [one.n],
                    [checked.leave_one_out],
                    [checked.leave_one_out_error],
                    fmt="*",
                    markersize=8,
                    color=kernel_colour(one.name, k),
                    label="leave-one-out" if k == r == 0 else None,
                )
    _beyond(axes, spectra)
    axes.axvspan(TRUSTED * spectra[0].n, spectra[0].n, color=GREY, alpha=0.12, linewidth=0, label="less certain")
    axes.set_xscale("log")
    axes.set_xlabel("training points n")
    axes.set_ylabel("mean squared error")


def _beyond(axes: Axes, spectra: Sequence[Spectrum]) -> None:
    """Draw the extrapolated effect of more data: a dotted line with a band, labelled as extrapolated."""
    for k, one in enumerate(spectra):
        try:
            found = one.extrapolated()
        except ConfigError:
            continue
        n, colour = [point.n for point in found], kernel_colour(one.name, k)
        axes.plot(n, [point.test_mse for point in found], ":", color=colour, label=None if k else "extrapolated")
        axes.fill_between(
            n, [point.low for point in found], [point.high for point in found], color=colour, alpha=0.15, linewidth=0
        )
