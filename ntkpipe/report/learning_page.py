"""The learning curve as a figure and a page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from ntkpipe.dynamics.spectrum import TRUSTED
from ntkpipe.report.figures import FigureFile
from ntkpipe.report.html import document, figures, section, table, write_page
from ntkpipe.report.learning_curve import Curve, Predicted
from ntkpipe.report.style import KERNEL_MARKERS, PAGE_WIDTH, kernel_colour, kernel_name, number, render, tint

_MEASURES = {"error": "test error (share of wrong classes)", "mse": "test mean squared error"}
_POINTS = {"inf": "t = ∞", "best": "best time", "only": "the only time"}

_CAPTION = (
    "Test error against the number of training points, both axes logarithmic; bars are standard errors over the test points. "
    "Filled: trained to convergence, or to the only time; open and dashed: the time with the least error, chosen by these same "
    "test points. Thin lines: fitted power laws."
)
_OF_THEORY = (
    " Dotted: squared error that theory predicts from the spectrum of the largest training set, for training to convergence; "
    "pale beyond a quarter of it, where it is less sure. The theory predicts squared error, not accuracy."
)


def write_learning_page(
    curves: Sequence[Curve], title: str, notes: Sequence[str], folder: Path, theory: Sequence[Predicted] = ()
) -> Path:
    """Write `learning_curve.html` and its figure (`learning_curve.png`, `.svg`) into a folder.

    Args:
        curves: of all kernels and ridges.
        title: of the page.
        notes: what the reader should know.
        folder: that exists.
        theory: predicted errors, drawn beside the measured ones of training to convergence.

    Returns:
        Path of the page.
    """
    shown = FigureFile(
        "learning_curve",
        "Learning curve",
        _CAPTION + (_OF_THEORY if theory else ""),
        *render(lambda: draw(curves, theory), folder, "learning_curve"),
    )
    warnings = "".join(f"<li>{escape(note)}</li>" for note in notes)
    body = [
        f"<header><h1>{escape(title)}</h1><p class='lead'>Learning curves of {len({c.kernel for c in curves})} kernels, "
        f"{min(c.sizes.min() for c in curves):,} to {max(c.sizes.max() for c in curves):,} training points.</p></header>",
        f'<div class="warnings" role="note"><ul>{warnings}</ul></div>' if warnings else "",
        figures([shown]),
        section("Scaling laws", _laws(curves)),
        section("Numbers", _numbers(curves)),
        section("Predicted by theory", _predictions(curves, theory)) if theory else "",
    ]
    return write_page(folder / "learning_curve.html", document(title, [part for part in body if part]))


def draw(curves: Sequence[Curve], theory: Sequence[Predicted] = ()) -> Figure:
    """A panel per measure, a line per kernel, ridge and choice of time; dotted lines of theory."""
    measures = [m for m in _MEASURES if any(c.measure == m for c in curves)]
    figure = Figure(figsize=(PAGE_WIDTH, 3.1 if len(measures) > 1 else 3.6), layout="constrained")
    kernels, ridges = _unique(c.kernel for c in curves), _unique(c.ridge for c in curves)
    for panel, measure in zip(np.atleast_1d(figure.subplots(1, len(measures))), measures, strict=True):
        for curve in (c for c in curves if c.measure == measure):
            colour = tint(kernel_colour(curve.kernel, kernels.index(curve.kernel)), ridges.index(curve.ridge))
            final = curve.point != "best"
            panel.errorbar(
                curve.sizes,
                curve.values,
                yerr=curve.errors,
                color=colour,
                marker=KERNEL_MARKERS.get(curve.kernel, "D"),
                markerfacecolor=colour if final else "white",
                linestyle="none",
                elinewidth=0.8,
                label=_name(curve, len(ridges) > 1),
            )
            n = np.geomspace(curve.sizes.min(), curve.sizes.max(), 100)
            style = {"color": colour, "linewidth": 1.0, "linestyle": "-" if final else (0, (4, 2))}
            if curve.fit is not None:
                panel.plot(n, curve.fit.at(n), **style)
            else:
                panel.plot(curve.sizes, curve.values, **style)
        if measure == "mse":
            for one in theory:
                colour = tint(kernel_colour(one.kernel, kernels.index(one.kernel)), ridges.index(one.ridge))
                ridge = f", ridge {number(one.ridge)}" if len(ridges) > 1 else ""
                style = {"color": colour, "linestyle": (0, (1.2, 1.4)), "linewidth": 1.8}
                sure = one.sizes <= TRUSTED * one.sample
                panel.plot(
                    one.sizes[sure], one.values[sure], label=f"{kernel_name(one.kernel)}{ridge}, theory", **style
                )
                first = max(int(sure.sum()) - 1, 0)  # the rest, paler, begins where the sure part ends
                panel.plot(one.sizes[first:], one.values[first:], alpha=0.35, **style)
        _axes(panel, curves, measure)
    handles, labels = figure.axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4))
    return figure


def _axes(panel, curves: Sequence[Curve], measure: str) -> None:
    panel.set_xscale("log")
    panel.set_xlabel("training points")
    panel.set_title(_MEASURES[measure])
    sizes = np.unique(np.concatenate([c.sizes for c in curves]))
    # Every size is named, unless they would run into each other.
    shown = sizes if len(sizes) <= 6 else sizes[np.linspace(0, len(sizes) - 1, 6).round().astype(int)]
    panel.set_xticks(shown, [f"{n:,}" for n in shown])
    panel.minorticks_off()
    values = np.concatenate([c.values for c in curves if c.measure == measure])
    values = values[np.isfinite(values) & (values > 0)]
    if not len(values):
        return  # nothing to be seen on a logarithmic axis: errors of 0
    panel.set_yscale("log")
    narrow = values.max() < 4 * values.min()
    panel.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]) if narrow else LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def _name(curve: Curve, with_ridge: bool) -> str:
    ridge = f", ridge {number(curve.ridge)}" if with_ridge else ""
    return f"{kernel_name(curve.kernel)}{ridge}, {_POINTS[curve.point]}"


def _laws(curves: Sequence[Curve]) -> str:
    rows = []
    for c in curves:
        heads = [kernel_name(c.kernel), number(c.ridge), _POINTS[c.point], c.measure]
        if c.fit is None:
            rows.append((heads, [("", ""), ("", ""), ("", ""), ("", ""), (c.why, "text")]))
            continue
        between = f"{c.fit.exponent_low:.4f} to {c.fit.exponent_high:.4f}"
        cells = [f"{c.fit.exponent:.4f}", between, f"{c.fit.scale:.4g}", f"{c.fit.constant:.4g}"]
        rows.append((heads, [*((text, "") for text in cells), ("; ".join(c.fit.doubts()), "text")]))
    note = (
        "error = a n<sup>-b</sup> + c, generalised least squares with the covariance of the errors over the test points, the same "
        "ones at every size, and with a further deviation where no law fits within it. The interval of b has all exponents for "
        "which some constant c &ge; 0 fits; c is 0 unless the sizes tell it from 0. Training points are nested subsets of one "
        "seeded order: what their choice does to all sizes alike is not seen."
    )
    columns = ["exponent b", "95% interval", "scale a", "constant c", "left open"]
    return table(["kernel", "ridge", "time", "measure"], columns, rows) + f'<p class="note">{note}</p>'


def _numbers(curves: Sequence[Curve]) -> str:
    sizes = np.unique(np.concatenate([c.sizes for c in curves]))
    parts = []
    for measure in _unique(c.measure for c in curves):
        chosen = [c for c in curves if c.measure == measure]
        rows = []
        for n in sizes:
            cells = []
            for c in chosen:
                (at,) = np.flatnonzero(c.sizes == n)
                when = "" if c.point == "inf" else f" (t = {number(float(c.times[at]))})"
                cells.append((f"{c.values[at]:.4f} ± {c.errors[at]:.4f}{when}", ""))
            rows.append(([f"{n:,}"], cells))
        columns = [_name(c, len({c.ridge for c in curves}) > 1) for c in chosen]
        parts.append(table(["training points"], columns, rows, _MEASURES[measure].capitalize()))
    return "".join(parts)


def _predictions(curves: Sequence[Curve], theory: Sequence[Predicted]) -> str:
    """Measured and predicted squared errors side by side."""
    rows = []
    for one in theory:
        (measured,) = [
            c for c in curves if (c.kernel, c.ridge, c.measure, c.point) == (one.kernel, one.ridge, "mse", "inf")
        ]
        for n, value in zip(measured.sizes, measured.values, strict=True):
            at = np.flatnonzero(one.sizes == n)
            if not len(at):
                continue
            predicted, error = one.values[at[0]], one.errors[at[0]]
            cells = [
                f"{value:.4f}",
                f"{predicted:.4f}" + (f" ± {error:.1g}" if error else ""),
                f"{predicted / value - 1.0:+.1%}",
            ]
            rows.append(([kernel_name(one.kernel), number(one.ridge), f"{n:,}"], [(text, "") for text in cells]))
    note = (
        f"From the spectrum of the {theory[0].sample:,} points of the largest run, for training sets drawn from them and tested on the "
        "rest. The theory predicts squared error, not accuracy. Beyond a quarter of these points it is less sure. Where "
        "predicted errors are far below measured ones, the test points are unlike the training points."
    )
    columns = ["measured", "predicted", "difference"]
    return table(["kernel", "ridge", "training points"], columns, rows) + f'<p class="note">{note}</p>'


def _unique(values) -> list:
    return list(dict.fromkeys(values))
