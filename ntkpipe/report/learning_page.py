"""Draws learning curves as a figure and writes them as a page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from ntkpipe.dynamics.spectrum import TRUSTED
from ntkpipe.report.html import FigureFile, document, figures, section, table, write_page
from ntkpipe.report.learning_curve import Curve, Predicted
from ntkpipe.report.style import (
    KERNEL_MARKERS,
    columns_of_legend,
    kernel_colour,
    kernel_name,
    number,
    render,
    render_for_phones,
    row_of_panels,
    tint,
)

_MEASURES = {"error": "test error (share of wrong classes)", "mse": "test mean squared error"}
_POINTS = {"inf": "t = ∞", "best": "best time", "only": "the only time"}

_CAPTION = (
    "Test error against the number of training points; both axes are logarithmic, and bars are standard errors over "
    "the test points. Filled markers: training to convergence, or to the only time. Open markers and dashed lines: "
    "the time with the smallest error, chosen on the same test points. Thin lines: fitted power laws."
)
_OF_THEORY = (
    " Dotted lines: squared error that theory predicts from the spectrum of the largest training set, for training to "
    "convergence. It is less certain above a quarter of that set (pale). A dotted line with a band is extrapolated to "
    "larger training sets. The theory predicts squared error, not accuracy."
)


def write_learning_page(
    curves: Sequence[Curve], title: str, notes: Sequence[str], folder: Path, theory: Sequence[Predicted] = ()
) -> Path:
    """Write `learning_curve.html` and its figure (`learning_curve.png`, `.svg`) into a folder.

    Args:
        curves: curves of all kernels and ridges.
        title: title of the page.
        notes: remarks for the reader.
        folder: an existing folder.
        theory: predicted errors, drawn beside the measured errors of training to convergence.

    Returns:
        Path of the page.
    """
    shown = FigureFile(
        "learning_curve",
        "Learning curve",
        _CAPTION + (_OF_THEORY if theory else ""),
        *render(lambda: draw(curves, theory), folder, "learning_curve"),
        lambda: render_for_phones(lambda: draw(curves, theory)),
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
    """Draw a panel per measure, with a line per kernel, ridge and choice of time, and dotted lines of theory."""
    measures = [m for m in _MEASURES if any(c.measure == m for c in curves)]
    figure, panels = row_of_panels(len(measures), 3.1 if len(measures) > 1 else 3.6)
    kernels, ridges = _unique(c.kernel for c in curves), _unique(c.ridge for c in curves)
    for panel, measure in zip(panels, measures, strict=True):
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
                first = max(int(sure.sum()) - 1, 0)  # the pale part begins where the certain part ends
                panel.plot(one.sizes[first:], one.values[first:], alpha=0.35, **style)
            _further(panel, curves, theory)
        _axes(panel, curves, measure)
        further = max((p.n for one in theory for p in one.further), default=0) if measure == "mse" else 0
        if further:
            ticks = [*panel.get_xticks(), further]
            panel.set_xticks(ticks, [f"{n:,.0f}" for n in ticks])
    handles, labels = figure.axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns_of_legend(len(labels), 4))
    return figure


def _further(panel, curves: Sequence[Curve], theory: Sequence[Predicted]) -> None:
    """Draw the extrapolated effect of more data as a dotted line with a band."""
    kernels, ridges = _unique(c.kernel for c in curves), _unique(c.ridge for c in curves)
    named = False
    for one in theory:
        if not one.further:
            continue
        colour = tint(kernel_colour(one.kernel, kernels.index(one.kernel)), ridges.index(one.ridge))
        n = [point.n for point in one.further]
        label = None if named else "extrapolated"
        panel.plot(n, [p.test_mse for p in one.further], ":", color=colour, linewidth=1.2, label=label)
        low, high = [p.low for p in one.further], [p.high for p in one.further]
        panel.fill_between(n, low, high, color=colour, alpha=0.15, linewidth=0)
        named = True


def _axes(panel, curves: Sequence[Curve], measure: str) -> None:
    panel.set_xscale("log")
    panel.set_xlabel("training points")
    panel.set_title(_MEASURES[measure])
    sizes = np.unique(np.concatenate([c.sizes for c in curves]))
    # Every size has a label unless labels would overlap.
    shown = sizes if len(sizes) <= 6 else sizes[np.linspace(0, len(sizes) - 1, 6).round().astype(int)]
    panel.set_xticks(shown, [f"{n:,}" for n in shown])
    panel.minorticks_off()
    values = np.concatenate([c.values for c in curves if c.measure == measure])
    values = values[np.isfinite(values) & (values > 0)]
    if not len(values):
        return  # errors of 0 cannot be drawn on a logarithmic axis
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
        low, high = c.fit.exponent_low, c.fit.exponent_high
        between = f"{low:.4f} to {high:.4f}" if np.isfinite([low, high]).any() else "any"
        cells = [f"{c.fit.exponent:.4f}", between, f"{c.fit.scale:.4g}", f"{c.fit.constant:.4g}"]
        rows.append((heads, [*((text, "") for text in cells), ("; ".join(c.fit.doubts()), "text")]))
    note = (
        "The law is error = a n<sup>-b</sup> + c, fitted by generalised least squares with the covariance of the "
        "errors over the shared test points. A further deviation is added if no law fits otherwise. The interval of b "
        "contains all exponents for which some constant c &ge; 0 fits; c is 0 unless it differs significantly from 0. "
        "Training sets are nested subsets of one seeded order, so the fit does not see the effect of their choice on "
        "all sizes together."
    )
    columns = ["exponent b", "95% interval", "scale a", "constant c", "remark"]
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
    """Return a table of measured and predicted squared errors."""
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
        f"Predicted from the spectrum of the {theory[0].sample:,} points of the largest run, for training sets drawn "
        "from them and tested on the rest. The theory predicts squared error, not accuracy, and is less certain above "
        "a quarter of these points. Predicted errors far below the measured ones mean that the test points differ "
        "from the training points."
    )
    columns = ["measured", "predicted", "difference"]
    made = table(["kernel", "ridge", "training points"], columns, rows) + f'<p class="note">{note}</p>'
    return made + _extrapolations(theory)


def _extrapolations(theory: Sequence[Predicted]) -> str:
    """Return a table of the extrapolated errors for more training points; empty if there are none."""
    rows = [
        (
            [kernel_name(one.kernel), number(one.ridge), f"{point.n:,}"],
            [(f"{point.test_mse:.4f}", ""), (f"{point.low:.4f} to {point.high:.4f}", "")],
        )
        for one in theory
        for point in one.further
    ]
    if not rows:
        return ""
    note = (
        "Expected errors with more data. They continue the predicted errors of up to a quarter of the points as a power of "
        "n. This is an extrapolation, not theory. The band contains other continuations of the same curve."
    )
    return table(["kernel", "ridge", "training points"], ["extrapolated", "band"], rows) + f'<p class="note">{note}</p>'


def _unique(values) -> list:
    return list(dict.fromkeys(values))
