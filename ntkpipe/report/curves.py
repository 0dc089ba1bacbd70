"""Draws figures with quantitative axes: training time, spectrum, convergence, calibration."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

from ntkpipe.predictions.choice import chosen_entries
from ntkpipe.predictions.metrics import ECE_BINS, calibration_curve, class_confidence
from ntkpipe.predictions.schema import Predictions
from ntkpipe.report.inputs import ReportInputs
from ntkpipe.report.style import (
    BLUE,
    GREY,
    INK,
    KERNEL_MARKERS,
    LINE_STYLES,
    PAGE_WIDTH,
    columns_of_legend,
    kernel_colour,
    kernel_name,
    log_subdivisions,
    number,
    row_of_panels,
    tint,
)


class TimeAxis:
    """A logarithmic axis of training time, with separate positions at its ends for t = 0 and t = ∞."""

    def __init__(self, times: np.ndarray) -> None:
        finite = times[(times > 0) & np.isfinite(times)]
        self.low, self.high = (math.log10(finite[0]), math.log10(finite[-1])) if finite.size else (0.0, 0.0)
        self.gap = max(0.12 * (self.high - self.low), 0.4)
        self.times = times
        with np.errstate(divide="ignore"):
            self.positions = np.log10(times)
        self.positions[times == 0] = self.low - self.gap
        self.positions[np.isinf(times)] = self.high + self.gap
        self.is_inner = (times > 0) & np.isfinite(times)

    def draw(self, axes: Axes) -> None:
        """Draw ticks, limits, labels and the breaks before the ends."""
        decades = list(range(math.ceil(self.low - 1e-9), math.floor(self.high + 1e-9) + 1))
        stride = math.ceil(len(decades) / 7)
        ticks = [(float(d), f"$10^{{{d}}}$") for d in decades[::stride]]
        if len(decades) < 2:
            ticks = [(math.log10(t), number(t)) for t in self.times[self.is_inner]]
        elif self.high - self.low < 6:
            axes.set_xticks(log_subdivisions(self.low, self.high), minor=True)
        for time, sign in ((0.0, -1), (math.inf, 1)):
            if (self.times == time).any():
                end = self.low if sign < 0 else self.high
                ticks.append((end + sign * self.gap, number(time)))
                if self.is_inner.any():
                    axes.axvline(end + sign * self.gap / 2, color=GREY, linewidth=0.6, linestyle=(0, (2, 3)))
        axes.set_xticks(*zip(*sorted(ticks), strict=True))
        margin = 0.35 * self.gap
        axes.set_xlim(self.positions[0] - margin, self.positions[-1] + margin)
        axes.set_xlabel("training time $t$ (gradient steps)")


def training_curves(inputs: ReportInputs) -> Figure:
    """Draw accuracy (for classification) and mean squared error against training time.

    If there is only one time, they are drawn against the ridge.
    """
    predictions = inputs.predictions
    panels = [("mse", "test mean squared error")]
    if predictions.is_classification:
        panels.insert(0, ("accuracy", "test accuracy"))
    width = PAGE_WIDTH if len(panels) == 2 else 4.2
    figure, drawn = row_of_panels(len(panels), 3.1, width=width)
    for axes, (metric, label) in zip(drawn, panels, strict=True):
        values = np.reshape([_value(entry[metric]) for entry in inputs.metrics["entries"]], predictions.shape[:3])
        if predictions.shape[1] > 1:
            axis = TimeAxis(predictions.times)
            for k, _, r in (entry for entry in predictions.entries() if entry[1] == 0):
                _draw_curve(axes, axis, values[k, :, r], predictions.kernels[k], k, r)
            axis.draw(axes)
        else:
            _draw_single_time(axes, inputs, values[:, 0])
        for k, t, r in chosen_entries(predictions).values() if predictions.shape[1] > 1 else ():
            mark_chosen(axes, float(TimeAxis(predictions.times).positions[t]), float(values[k, t, r]))
        doubted = np.reshape([bool(entry.get("doubt")) for entry in inputs.metrics["entries"]], predictions.shape[:3])
        for k, t, r in np.argwhere(doubted & np.isfinite(values)).tolist():
            mark_doubtful(axes, _position(predictions, k, t, r), float(values[k, t, r]))
        _scale(axes, values[np.isfinite(values)], is_share=metric == "accuracy")
        axes.set_ylabel(label)
    _legend(figure, inputs, int(width / 1.55))
    return figure


def mark_chosen(axes: Axes, x: float, y: float) -> None:
    """Draw a ring around the chosen point."""
    axes.plot([x], [y], marker="o", markersize=10, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.1)


def mark_doubtful(axes: Axes, x: float, y: float) -> None:
    """Draw a cross over a point whose value may be entirely wrong."""
    axes.plot([x], [y], marker="x", markersize=9, markeredgecolor=INK, markeredgewidth=1.1, linestyle="none", zorder=5)


def _position(predictions: Predictions, k: int, t: int, r: int) -> float:
    """Return the position of an entry along the horizontal axis."""
    K, T, R = predictions.shape[:3]
    if T > 1:
        return float(TimeAxis(predictions.times).positions[t])
    return r + _offset(k, K) if R > 1 else float(k)


def _offset(k: int, kernels: int) -> float:
    """Return the horizontal offset that places kernels beside each other."""
    return 0.12 * (k - (kernels - 1) / 2)


def _value(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _scale(axes: Axes, values: np.ndarray, *, is_share: bool) -> None:
    """Scale the vertical axis.

    Shares are percentages with as many digits as their spread needs, without room above 100%. Other values with large
    ratios get a logarithmic axis.
    """
    if is_share:
        low, high = axes.get_ylim()
        if values.size and np.ptp(values) == 0:
            low, high = values[0] - 0.02, values[0] + 0.02
        axes.set_ylim(max(low, -0.003), min(high, 1.003))
        spread = axes.get_ylim()[1] - axes.get_ylim()[0]
        axes.yaxis.set_major_formatter(
            PercentFormatter(1, decimals=0 if spread > 0.06 else (1 if spread > 0.006 else 2))
        )
    elif values.size and values.min() > 0 and values.max() > 30 * values.min():
        axes.set_yscale("log")


def _draw_single_time(axes: Axes, inputs: ReportInputs, values: np.ndarray) -> None:
    """Draw the values (kernel, ridge) of the only time, with kernels beside each other for every ridge."""
    predictions = inputs.predictions
    K, R = values.shape
    for k, kernel in enumerate(predictions.kernels):
        x = np.arange(R) + (_offset(k, K) if R > 1 else k)
        axes.plot(
            x, values[k], color=kernel_colour(kernel, k), marker=KERNEL_MARKERS.get(kernel, "D"), markersize=5,
            linewidth=0.8,
        )  # fmt: skip
    time = number(float(predictions.times[0]))
    if R > 1:
        axes.set_xticks(np.arange(R), [number(float(ridge)) for ridge in predictions.ridges])
        axes.set_xlabel(f"{_ridge_name(predictions.ridge_scale)} (at t = {time})")
    else:
        axes.set_xticks(np.arange(K), [kernel_name(kernel) for kernel in predictions.kernels])
        axes.set_xlabel(f"at t = {time}")
    axes.set_xlim(-0.6, max(K if R == 1 else R, 1) - 0.4)


def _ridge_name(ridge_scale: str) -> str:
    return "relative ridge" if ridge_scale == "relative" else "ridge"


def _draw_curve(axes: Axes, axis: TimeAxis, values: np.ndarray, kernel: str, k: int, r: int) -> None:
    colour, marker = tint(kernel_colour(kernel, k), r), KERNEL_MARKERS.get(kernel, "D")
    inner = axis.is_inner
    x = axis.positions
    face = colour if r == 0 else "white"
    common = {"color": colour, "marker": marker, "markerfacecolor": face, "markeredgewidth": 1.0}
    axes.plot(x[inner], values[inner], linestyle=LINE_STYLES[r % len(LINE_STYLES)], **common)
    axes.plot(x[~inner], values[~inner], linestyle="none", **common)
    # A faint line across the break connects the curve without a scale.
    for a, b in zip(range(len(x) - 1), range(1, len(x)), strict=True):
        if not (inner[a] and inner[b]):
            axes.plot(x[[a, b]], values[[a, b]], color=colour, linewidth=0.8, alpha=0.35, zorder=1)


def _legend(figure: Figure, inputs: ReportInputs, columns: int) -> None:
    predictions = inputs.predictions
    _, T, R = predictions.shape[:3]
    if T == 1 and R == 1:
        return  # the horizontal axis shows the kernels' names
    handles = [
        Line2D([], [], color=kernel_colour(name, k), marker=KERNEL_MARKERS.get(name, "D"), label=kernel_name(name))
        for k, name in enumerate(predictions.kernels)
    ]
    if T > 1 and R > 1:
        handles += [
            Line2D([], [], color=tint(GREY, r), linestyle=LINE_STYLES[r % len(LINE_STYLES)], marker="o",
                   markerfacecolor=GREY if r == 0 else "white",
                   label=f"{_ridge_name(predictions.ridge_scale)} {number(float(ridge))}")
            for r, ridge in enumerate(predictions.ridges)
        ]  # fmt: skip
    if len(handles) > 1:
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=columns_of_legend(len(handles), columns),
            handlelength=2.6,
        )


def spectrum(inputs: ReportInputs) -> Figure:
    """Draw eigenvalues (or Ritz values) of the train-train kernels in descending order, with logarithmic axes."""
    figure, (axes,) = row_of_panels(1, 3.1, width=4.2)
    for k, (kernel, values) in enumerate(inputs.spectra.items()):
        ordered = np.sort(np.asarray(values, dtype=np.float64))[::-1]
        index = np.arange(1, len(ordered) + 1)
        positive = ordered > 0
        axes.loglog(
            index[positive], ordered[positive], color=kernel_colour(kernel, k), label=kernel_name(kernel),
            marker=KERNEL_MARKERS.get(kernel, "D"), markersize=3, markerfacecolor="white", markeredgewidth=0.8,
            markevery=(0.02 * k, 0.06), linewidth=1.2,
        )  # fmt: skip
    _log_ticks(axes)
    axes.set_xlabel("index")
    singular = inputs.spectrum_kind.rstrip("s")
    axes.set_ylabel(f"{singular} of the training kernel")
    if len(inputs.spectra) > 1:
        axes.legend(loc="upper right")
    return figure


def convergence(inputs: ReportInputs) -> Figure:
    """Draw the stopping criterion of the solver and the error bound of the predictions against its block steps."""
    figure, (axes,) = row_of_panels(1, 3.1, width=4.2)
    for k, (kernel, record) in enumerate(inputs.convergence.items()):
        steps, bound = np.asarray(record["steps"], float), np.asarray(record["bound"], float)
        shown, colour, name = np.isfinite(bound) & (bound > 0), kernel_colour(kernel, k), kernel_name(kernel)
        found = np.asarray(record.get("estimates", ()), float).reshape(-1, 3)
        estimated = len(found) > 0
        axes.semilogy(
            steps[shown], bound[shown], color=colour, marker=KERNEL_MARKERS.get(kernel, "D"),
            markersize=3, markerfacecolor="white", markeredgewidth=0.8, markevery=max(1, int(shown.sum()) // 20),
            label=f"{name}: bound" if estimated else name, alpha=0.45 if estimated else 1.0,
        )  # fmt: skip
        if estimated:
            step, left, wanted = found[found[:, 1] > 0].T
            axes.semilogy(step, left, color=colour, linewidth=1.2, label=f"{name}: estimate")
            axes.semilogy(step, wanted, color=colour, linewidth=0.9, linestyle=(0, (4, 2)), label=f"{name}: wanted")
    if inputs.tolerance is not None:
        axes.axhline(inputs.tolerance, color=GREY, linewidth=0.9, linestyle=(0, (4, 2)), label="tolerance")
    _log_ticks(axes, x=False)
    axes.set_xlabel("block steps")
    estimates = any("estimates" in record for record in inputs.convergence.values())
    axes.set_ylabel("error of a prediction" if estimates else "largest error bound of a prediction")
    if len(inputs.convergence) > 1 or inputs.tolerance is not None or estimates:
        axes.legend(loc="upper right", fontsize="small" if estimates else None)
    return figure


def _log_ticks(axes: Axes, *, x: bool = True) -> None:
    for axis in [axes.yaxis] + ([axes.xaxis] if x else []):
        axis.set_major_locator(LogLocator(numticks=8))
        axis.set_minor_formatter(NullFormatter())


def reliability(inputs: ReportInputs) -> Figure:
    """Draw accuracy against confidence of the headline entry in bins, and below it the number of points per bin."""
    predictions, entry = inputs.predictions, inputs.headline()
    assert predictions.variance is not None
    assert predictions.label is not None
    mean = predictions.mean[entry]
    variance = predictions.variance[entry]
    variance = np.maximum(variance, np.finfo(np.float64).eps * variance.max())
    confidence = class_confidence(mean, variance)
    curve = calibration_curve(confidence, mean.argmax(1) == predictions.label)
    figure = Figure(figsize=(3.4, 3.9), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    upper.plot([0, 1], [0, 1], color=GREY, linewidth=0.9, linestyle=(0, (4, 2)))
    error = np.sqrt(curve[:, 1] * (1 - curve[:, 1]) / curve[:, 2])
    upper.errorbar(
        curve[:, 0], curve[:, 1], yerr=error, color=BLUE, marker="o", capsize=2, elinewidth=0.9, clip_on=False
    )
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    lower.hist(confidence, bins=ECE_BINS, range=(0, 1), color=BLUE, edgecolor="white", linewidth=0.5)
    lower.set(xlabel="confidence in the predicted class", ylabel="test points")
    figure.align_ylabels()
    return figure
