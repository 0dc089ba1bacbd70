"""The calibration figure: coverage of intervals, z-scores, and errors by predicted deviation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, PercentFormatter
from scipy.special import ndtr

from ntkpipe.predictions.calibration import LEVELS, coverage, error_by_deviation, usable_variance, z_scores
from ntkpipe.report.inputs import ReportInputs
from ntkpipe.report.style import GREY, KERNEL_MARKERS, kernel_colour, kernel_name, number, row_of_panels

# Range of the drawn z-scores. Values outside are counted in the first and last bars.
Z_LIMIT = 5.0
# Share of an axis that the label of a tick and the space around it take. `0.0285` takes 28 points of 115.
_LABEL_ROOM = 0.25


def calibration_entries(inputs: ReportInputs) -> list[tuple[int, int, int]]:
    """Return the entry of every kernel at the headline's time and ridge, if its means and variances are finite."""
    predictions, (_, t, r) = inputs.predictions, inputs.headline()
    if predictions.variance is None or not predictions.has_targets:
        return []
    return [
        (k, t, r)
        for k in range(len(predictions.kernels))
        if np.isfinite(predictions.mean[k, t, r]).all() and usable_variance(_variance(inputs, (k, t, r))) is not None
    ]


def _variance(inputs: ReportInputs, entry: tuple[int, int, int]) -> np.ndarray:
    found = inputs.predictions.target_variance(entry)
    assert found is not None
    return found


def calibration(inputs: ReportInputs) -> Figure:
    """Draw coverage of central intervals, z-scores, and error against predicted deviation, with a curve per kernel."""
    predictions = inputs.predictions
    assert predictions.variance is not None
    figure, (covered, scores, errors) = row_of_panels(3, 2.7)
    covered.plot([0, 1], [0, 1], color=GREY, linewidth=0.9, linestyle=(0, (4, 2)))
    edges = np.linspace(-Z_LIMIT, Z_LIMIT, 41)
    for entry in calibration_entries(inputs):
        k = entry[0]
        kernel = predictions.kernels[k]
        colour, marker = kernel_colour(kernel, k), KERNEL_MARKERS.get(kernel, "D")
        mean, target = predictions.mean[entry], predictions.target
        variance = usable_variance(_variance(inputs, entry))
        assert variance is not None
        z = z_scores(mean, target, variance)
        covered.plot(LEVELS, coverage(z), color=colour, marker=marker, markersize=3, label=kernel_name(kernel))
        counts, _ = np.histogram(np.clip(z, -Z_LIMIT, Z_LIMIT), edges)
        scores.stairs(counts / (z.size * np.diff(edges)), edges, color=colour, linewidth=1.2)
        binned = error_by_deviation(mean, target, variance)
        binned = binned[(binned[:, :2] > 0).all(axis=1)]  # logarithmic axes cannot show 0
        errors.loglog(binned[:, 0], binned[:, 1], color=colour, marker=marker, markersize=4)
    centres = np.linspace(-Z_LIMIT, Z_LIMIT, 400)
    step = centres[1] - centres[0]
    normal = (ndtr(centres + step / 2) - ndtr(centres - step / 2)) / step
    scores.plot(centres, normal, color=GREY, linewidth=0.9, linestyle=(0, (4, 2)))
    low, high = _equal_limits(errors)
    errors.plot([low, high], [low, high], color=GREY, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1)
    covered.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="nominal probability", ylabel="targets within the interval")
    for axis in (covered.xaxis, covered.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    scores.set(xlim=(-Z_LIMIT, Z_LIMIT), xlabel="error / predicted standard deviation", ylabel="density")
    errors.set(xlabel="predicted deviation", ylabel="root mean square error")
    if len(calibration_entries(inputs)) > 1:
        covered.legend(loc="best", handlelength=1.6)  # curves may lie on either side of the diagonal
    return figure


def _equal_limits(axes: Any) -> tuple[float, float]:
    """Give both axes the same range, with a margin of a fifth, and plain ticks; returns the range."""
    points = np.concatenate([np.column_stack(line.get_data()) for line in axes.lines])
    points = points[(points > 0).all(axis=1)]
    low, high = (float(points.min()) / 1.2, float(points.max()) * 1.2) if len(points) else (0.1, 1.0)
    axes.set(xlim=(low, high), ylim=(low, high))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator(round_ticks(low, high).tolist()))
        axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(lambda value, _: number(value))
    return low, high


def round_ticks(low: float, high: float) -> np.ndarray:
    """Return round numbers between `low` and `high` for the ticks of a logarithmic axis.

    There are as many as fit with their labels on a third of the page's width.
    """
    powers = 10.0 ** np.arange(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    choices = [np.outer(powers, digits).ravel() for digits in ((1, 2, 5), (1, 3), (3,))]
    choices += [powers[::every] for every in range(1, len(powers))]
    # Within a decade, ticks are multiples of one step. The finest step is a thousandth of the largest power of ten.
    steps = np.outer((powers[-1] / 1000, powers[-1] / 100, powers[-1] / 10), (1, 2, 5)).ravel()
    choices += [step * np.arange(math.ceil(low / step), math.floor(high / step) + 1) for step in steps]
    within = [ticks[(ticks >= low) & (ticks <= high)] for ticks in choices]
    within += [ticks[::2] for ticks in within]
    apart = _LABEL_ROOM * math.log(high / low)
    return max((ticks for ticks in within if (np.diff(np.log(ticks)) >= apart).all()), key=len)
