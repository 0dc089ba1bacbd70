"""Chooses and writes the figures of a run, with their captions."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ntkpipe.predictions.choice import basis_of, chosen_entries, selection_of
from ntkpipe.predictions.doubt import MARK, legend
from ntkpipe.report import calibration_figure, curves, infinite_figure, outcomes
from ntkpipe.report.html import FigureFile
from ntkpipe.report.inputs import ReportInputs
from ntkpipe.report.selecting import selection_curves
from ntkpipe.report.style import entry_name, number, render, render_for_phones


def write_figures(inputs: ReportInputs, folder: str | os.PathLike[str]) -> list[FigureFile]:
    """Draw every figure that the run has data for, as PNG (200 dpi) and SVG.

    The figures are:

    - `training_curves`, if the test points have targets;
    - `selection`, if a time and a ridge were chosen;
    - for classification `confusion`, `mistakes` (if there are images and mistakes), and `reliability` (with variances);
    - for regression `scatter`, and `mistakes` if there are images;
    - `calibration`, if there are variances;
    - `spectrum` and `convergence`, if the solver recorded them;
    - `beside_infinite`, for one finite network.

    Detailed figures show the entry `inputs.headline()`. They are left out if its means are not finite.

    Args:
        inputs: the data of the report.
        folder: folder of the files, created if absent. Existing files with the names above are replaced.

    Returns:
        The figures in the order of the report.
    """
    return [
        FigureFile(
            name,
            title,
            caption,
            *render(lambda draw=draw: draw(inputs), Path(folder), name),
            lambda draw=draw: render_for_phones(lambda: draw(inputs)),
        )
        for name, title, caption, draw in _choose(inputs)
    ]


def _mistakes(count: int, shown: str) -> str:
    if count > outcomes.MISTAKES_SHOWN:
        return f"The {outcomes.MISTAKES_SHOWN} most confident of {count} mistakes of {shown}"
    return f"All {count} mistakes of {shown}, most confident first" if count > 1 else f"The only mistake of {shown}"


def _may_be_drawn(values: np.ndarray) -> np.ndarray:
    """Return a mask of the values that can be drawn on a logarithmic axis."""
    return np.isfinite(values) & (values > 0)


def _choose(inputs: ReportInputs) -> list[tuple[str, str, str, Callable[[ReportInputs], Figure]]]:
    predictions = inputs.predictions
    entry = k, t, r = inputs.headline()
    shown = entry_name(predictions.kernels[k], predictions.times[t], predictions.ridges[r])
    doubted = inputs.metric(entry).get("doubt")
    if doubted:
        shown += f" ({MARK} {legend([doubted])[0]})"
    if not predictions.has_targets:
        return _of_the_kernels(inputs)
    measure = "accuracy and mean squared error" if predictions.is_classification else "mean squared error"
    scale = " (relative to the mean of the kernel's diagonal)" if predictions.ridge_scale == "relative" else ""
    when, end = f"at t = {number(float(predictions.times[0]))}", ""
    if len(predictions.times) > 1:
        when = "against training time"
        if predictions.times[-1] == np.inf:
            end = " The point at ∞, beyond the dotted line, is training to convergence."
    ridges = ", ".join(number(float(ridge)) for ridge in predictions.ridges)
    if chosen_entries(predictions) and len(predictions.times) > 1:
        end += f" Ringed: chosen on {basis_of(predictions)}."
    end += "".join(f" Crossed out: {text}." for text in legend(m.get("doubt") for m in inputs.metrics["entries"]))
    figures: list[tuple[str, str, str, Callable[[ReportInputs], Figure]]] = [
        (
            "training_curves",
            "Predictions along training",
            f"Test {measure} of the infinitely wide network {when}, ridge {ridges}{scale}.{end}",
            curves.training_curves,
        )
    ]
    if selection_of(predictions):
        caption = (
            f"Errors on {basis_of(predictions)}. The ringed time and ridge of each kernel were chosen by them, "
            "without the test points."
        )
        figures.append(
            (
                "selection",
                "Choice of the ridge and the time",
                caption,
                lambda inputs: selection_curves(inputs.predictions),
            )
        )
    finite = bool(np.isfinite(predictions.mean[entry]).all())
    if predictions.is_classification:
        if finite:
            accuracy = inputs.metric(entry)["accuracy"]
            caption = (
                f"Confusion matrix of {shown} (accuracy {accuracy:.2%}): counts, coloured by share of the true class."
            )
            figures.append(("confusion", "Confusion matrix", caption, outcomes.confusion))
            count = len(outcomes.confident_mistakes(inputs)[0])
            if inputs.images is not None and count:
                caption = (
                    f"{_mistakes(count, shown)}. Above each image: the true class, then the predicted class and the "
                    "margin between the means of the two."
                )
                figures.append(("mistakes", "Most confident mistakes", caption, outcomes.mistakes))
            variance = None if predictions.variance is None else predictions.variance[entry]
            if variance is not None and np.isfinite(variance).all() and variance.max() > 0:
                caption = (
                    f"Calibration of {shown}. Top: accuracy against the probability that the predicted class has the "
                    "largest output, with standard errors. Bottom: number of test points per bin."
                )
                figures.append(("reliability", "Calibration", caption, curves.reliability))
    elif finite:
        bars = (
            "; bars show two standard deviations"
            if predictions.variance is not None and predictions.shape[3] <= 200
            else ""
        )
        caption = f"Predicted mean against target of {shown} for all {predictions.shape[3]} test points{bars}."
        title = "Predicted against target" + (", with two standard deviations" if bars else "")
        figures.append(("scatter", title, caption, outcomes.scatter))
        if inputs.images is not None:
            what = (
                "the target, then the prediction"
                if predictions.shape[4] == 1
                else "its index and root mean squared error"
            )
            caption = f"Test points with the largest errors of {shown}. Above each image: {what}."
            figures.append(("mistakes", "Largest errors", caption, outcomes.mistakes))
    if entry in calibration_figure.calibration_entries(inputs):
        caption = (
            f"Predicted standard deviations and errors at t = {number(float(predictions.times[t]))}, ridge "
            f"{number(float(predictions.ridges[r]))}: share of targets within central intervals (dashed: nominal "
            "share), errors divided by the predicted deviation (dashed: normal density), and root mean square errors "
            "by deciles of the predicted deviation (dashed: equality)."
        )
        figures.append(
            ("calibration", "Calibration of the predicted deviations", caption, calibration_figure.calibration)
        )
    return figures + _of_the_kernels(inputs)


def _of_the_kernels(inputs: ReportInputs) -> list[tuple[str, str, str, Callable[[ReportInputs], Figure]]]:
    """Return the figures that need no targets of test points."""
    figures: list[tuple[str, str, str, Callable[[ReportInputs], Figure]]] = []
    if any(np.any(np.asarray(values) > 0) for values in inputs.spectra.values()):
        note = ""
        if inputs.spectrum_kind.lower().startswith("ritz"):
            note = " Ritz values approach the eigenvalues from inside the spectrum, first at its ends."
        below = {name: int(np.sum(np.asarray(values) <= 0)) for name, values in inputs.spectra.items()}
        note += "".join(
            f" Not shown: {count} values of {name} at or below zero." for name, count in below.items() if count
        )
        caption = f"{inputs.spectrum_kind[:1].upper()}{inputs.spectrum_kind[1:]} of the train-train kernels, in descending order.{note}"
        figures.append(("spectrum", "Spectrum of the kernels", caption, curves.spectrum))
    if (found := infinite_figure.beside_infinite_of(inputs)) is not None:
        figures.append(
            (
                "beside_infinite",
                "Finite and infinite network",
                infinite_figure.caption(found),
                infinite_figure.finite_beside_infinite,
            )
        )
    if any(_may_be_drawn(np.asarray(record["bound"], float)).sum() > 1 for record in inputs.convergence.values()):
        caption = "Largest error bound of any prediction against block steps of the Krylov solver."
        if any("estimates" in record for record in inputs.convergence.values()):
            caption += (
                " Solid: how much further steps may still move a test prediction. The solver stops where this meets the dashed line: the "
                "tolerance, or a tenth of the errors of the tiles and of rounding."
            )
        figures.append(("convergence", "Convergence of the solver", caption, curves.convergence))
    return figures
