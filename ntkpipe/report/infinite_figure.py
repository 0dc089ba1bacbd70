"""Draws a figure that compares the kernels of a finite network with those of the infinite one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ntkpipe.report.inputs import ReportInputs
from ntkpipe.report.style import GREY, LINE_STYLES, kernel_colour, kernel_name, row_of_panels


def beside_infinite_of(inputs: ReportInputs) -> Mapping[str, Any] | None:
    """Return the comparison that `run.beside_infinite` made; None for other kernels."""
    return inputs.predictions.attributes.get("beside_infinite")


def caption(found: Mapping[str, Any]) -> str:
    """Return the caption of the figure."""
    deviations = ", ".join(f"{kernel_name(name)} {one['deviation']:.1%}" for name, one in found["kernels"].items())
    return (
        f"Kernels of this network and of the infinite one for {found['points']:,} training points: eigenvalues, ratio "
        "of eigenvalues by rank, and alignment with the labels, <K, YY^T> / (|K| |YY^T|). Relative deviation |K "
        f"finite - K infinite| / |K infinite|: {deviations}."
    )


def finite_beside_infinite(inputs: ReportInputs) -> Figure:
    """Draw eigenvalues, their ratio, and alignment with the labels."""
    found = beside_infinite_of(inputs)
    assert found is not None
    figure, (first, second, third) = row_of_panels(3, 2.6, ratios=(1, 1, 0.75))
    kernels = found["kernels"]
    _eigenvalues(first, kernels)
    _ratios(second, kernels)
    _alignment(third, kernels)
    return figure


def _eigenvalues(axes: Axes, kernels: Mapping[str, Any]) -> None:
    axes.set_title("Eigenvalues")
    for k, (name, one) in enumerate(kernels.items()):
        largest = max(one["eigenvalues"]["infinite"][0], one["eigenvalues"]["finite"][0])
        for line, which in ((LINE_STYLES[0], "finite"), (LINE_STYLES[1], "infinite")):
            values = np.array(one["eigenvalues"][which])
            shown = values > 1e-9 * largest  # smaller values are only rounding errors
            place = np.arange(1, len(values) + 1)
            axes.plot(
                place[shown],
                values[shown],
                color=kernel_colour(name, k),
                linestyle=line,
                label=f"{kernel_name(name)}, {which}",
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("index i")
    axes.legend(loc="lower left")


def _ratios(axes: Axes, kernels: Mapping[str, Any]) -> None:
    axes.set_title("Finite over infinite")
    for k, (name, one) in enumerate(kernels.items()):
        ratios = np.array(one["spectrum_ratio"])
        axes.plot(np.arange(1, len(ratios) + 1), ratios, color=kernel_colour(name, k), label=kernel_name(name))
    axes.axhline(1.0, color=GREY, linewidth=0.8, linestyle=LINE_STYLES[1])
    axes.set_xscale("log")
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("index i")
    axes.set_ylabel("ratio of eigenvalues")
    axes.legend(loc="best")


def _alignment(axes: Axes, kernels: Mapping[str, Any]) -> None:
    axes.set_title("Alignment with labels")
    for k, (name, one) in enumerate(kernels.items()):
        for side, which in ((-0.2, "finite"), (0.2, "infinite")):
            axes.bar(
                k + side,
                one["alignment"][which],
                width=0.36,
                color=kernel_colour(name, k),
                alpha=1.0 if which == "finite" else 0.45,
            )
    places = [k + side for k in range(len(kernels)) for side in (-0.2, 0.2)]
    axes.set_xticks(
        places, [word for name in kernels for word in (f"{kernel_name(name)}\nfinite", "\ninfinite")], fontsize=7
    )
    axes.grid(visible=False, axis="x")
