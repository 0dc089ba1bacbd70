"""The part of the page with a slider over the training time: curves, confusion matrix and calibration at each time.

The page contains drawings for every time, and its script shows one of them. Without the script, and on paper, the last
time is shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from ntkpipe.predictions.calibration import LEVELS, coverage, usable_variance, z_scores
from ntkpipe.predictions.doubt import MARK
from ntkpipe.predictions.metrics import calibration_curve, class_confidence
from ntkpipe.report.chart import Chart, matrix
from ntkpipe.report.inputs import ReportInputs
from ntkpipe.report.style import BLUE, kernel_colour, kernel_name, number, short

# More times would make the page too large. If there are more, the first, the last and some between are shown.
MOST_TIMES = 40
# A confusion matrix of more classes has no room for its numbers.
MOST_CLASSES = 20
_PERCENT = [(share / 100, f"{share}%") for share in (0, 25, 50, 75, 100)]

Frame = Callable[[int], str]


def along_training(inputs: ReportInputs) -> str:
    """Return the HTML of the slider and its panels; empty if there is a single time, or there are no targets."""
    predictions = inputs.predictions
    T = len(predictions.times)
    if T < 2 or not predictions.has_targets:
        return ""
    shown = np.unique(np.linspace(0, T - 1, min(T, MOST_TIMES)).round().astype(int)).tolist()
    k, _, r = inputs.headline()
    panels: list[tuple[str, str] | None] = [_curves(inputs, shown, r)]
    if predictions.is_classification:
        if len(predictions.class_names) <= MOST_CLASSES:
            panels.append(_confusion(inputs, shown, k, r))
        panels.append(_reliability(inputs, shown, k, r))
    else:
        panels += [_predicted(inputs, shown, k, r), _coverage(inputs, shown, k, r)]
    texts = [f"t = {number(float(predictions.times[t]))}" for t in shown]
    values = _frames(shown, lambda t: escape(_told(inputs, t, r)), "p")
    slider = (
        f'<label class="slider" hidden>training time <input type="range" min="0" max="{len(shown) - 1}" value="{len(shown) - 1}" '
        f'step="1" data-texts="{escape("|".join(texts))}" aria-valuetext="{escape(texts[-1])}"></label>'
    )
    ridge = number(float(predictions.ridges[r]))
    name = kernel_name(predictions.kernels[k])
    note = f"The curves show every kernel with ridge {ridge}. The other panels show the {name} with this ridge."
    body = "".join(f"<figure><h3>{title}</h3>{drawn}</figure>" for title, drawn in filter(None, panels))
    return (
        f'<div class="times">{slider}<div class="told">{values}</div><div class="side">{body}</div>'
        f'<p class="note">{escape(note)}</p></div>'
    )


def _frames(shown: Sequence[int], draw: Frame, element: str = "g") -> str:
    """Return one element per time. All except the last are hidden."""
    last = len(shown) - 1
    return "".join(
        f'<{element} data-frame="{i}"{" hidden" if i < last else " data-last"}>{draw(t)}</{element}>'
        for i, t in enumerate(shown)
    )


def _told(inputs: ReportInputs, t: int, r: int) -> str:
    """Return a text with the time and the metrics of every kernel."""
    predictions, parts = inputs.predictions, []
    for k, kernel in enumerate(predictions.kernels):
        metric = inputs.metric((k, t, r))
        found, mark = [], MARK if metric.get("doubt") else ""
        if metric.get("accuracy") is not None:
            found.append(f"accuracy {metric['accuracy']:.2%}{mark}")
        name = "mse" if predictions.is_classification else "rmse"
        if metric.get(name) is not None:
            found.append(
                f"{'mean squared error' if name == 'mse' else 'root mean squared error'} {metric[name]:.4g}{mark}"
            )
        parts.append(f"{kernel_name(kernel)}: {', '.join(found) or 'not finite'}")
    return f"t = {number(float(predictions.times[t]))}. {'; '.join(parts)}."


def _curves(inputs: ReportInputs, shown: Sequence[int], r: int) -> tuple[str, str]:
    predictions = inputs.predictions
    classes = predictions.is_classification
    name, title = ("accuracy", "test accuracy") if classes else ("rmse", "test root mean squared error")
    values = np.array(
        [
            [_number(inputs.metric((k, t, r)).get(name)) for t in range(len(predictions.times))]
            for k in range(len(predictions.kernels))
        ]
    )
    places, ticks = _time_places(predictions.times)
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    spread = max(high - low, 0.02 if classes else 0.02 * abs(high), 1e-12)
    ends = (max(low - 0.08 * spread, 0.0), min(high + 0.08 * spread, 1.0) if classes else high + 0.08 * spread)
    ends = ends if ends[1] > ends[0] else (ends[0] - 0.5, ends[0] + 0.5)
    chart = Chart(
        "training time (gradient steps)",
        title,
        (places[0] - 0.2, places[-1] + 0.2),
        ends,
        ticks,
        [(value, f"{value:.{_decimals(ends)}%}" if classes else f"{value:.3g}") for value in _round(*ends)],
        f"{title} against training time",
    )
    lines = "".join(
        chart.curve(places, values[k], kernel_colour(kernel, k)) for k, kernel in enumerate(predictions.kernels)
    )

    def at(t: int) -> str:
        dots = [
            chart.dots([places[t]], [values[k, t]], kernel_colour(kernel, k))
            for k, kernel in enumerate(predictions.kernels)
        ]
        return chart.upright(places[t]) + "".join(dots)

    names = ", ".join(
        f'<b style="color:{kernel_colour(kernel, k)}">{escape(kernel_name(kernel))}</b>'
        for k, kernel in enumerate(predictions.kernels)
    )
    return f"{title.capitalize()}: {names}", chart.draw(lines + _frames(shown, at))


def _confusion(inputs: ReportInputs, shown: Sequence[int], k: int, r: int) -> tuple[str, str]:
    predictions = inputs.predictions
    names = [short(name, 10) for name in predictions.class_names]
    draw, edge, left = matrix(names, "predicted class", "true class", "confusion matrix")
    label, classes = predictions.label, len(names)
    assert label is not None

    def at(t: int) -> str:
        mean = predictions.mean[k, t, r]
        if not np.isfinite(mean).all():
            return ""
        counts = np.bincount(label * classes + mean.argmax(1), minlength=classes * classes).reshape(classes, classes)
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        cells = []
        for i, j in zip(*np.nonzero(counts), strict=True):
            x, y, share = left + j * edge, left + i * edge, float(shares[i, j])
            cells.append(
                f'<rect class="cell" x="{x:.1f}" y="{y:.1f}" width="{edge:.1f}" height="{edge:.1f}" '
                f'style="fill-opacity:{0.12 + 0.88 * share:.2f}"/>'
            )
            if edge >= 16:
                kind = "count on" if share > 0.45 else "count"
                cells.append(
                    f'<text class="{kind}" x="{x + edge / 2:.1f}" y="{y + edge / 2 + 4:.1f}">{counts[i, j]}</text>'
                )
        return "".join(cells)

    return "Confusion matrix (test points)", draw(_frames(shown, at))


def _reliability(inputs: ReportInputs, shown: Sequence[int], k: int, r: int) -> tuple[str, str] | None:
    predictions = inputs.predictions
    if predictions.variance is None:
        return None
    variances, label = predictions.variance, predictions.label
    assert label is not None
    chart = Chart(
        "confidence in the predicted class",
        "accuracy",
        (0, 1),
        (0, 1),
        _PERCENT,
        _PERCENT,
        "accuracy against confidence",
    )

    def at(t: int) -> str:
        mean, variance = predictions.mean[k, t, r], usable_variance(variances[k, t, r])
        if variance is None or not np.isfinite(mean).all():
            return ""
        curve = calibration_curve(class_confidence(mean, variance), mean.argmax(1) == label)
        return chart.curve(curve[:, 0].tolist(), curve[:, 1].tolist(), BLUE)

    return "Calibration: accuracy against confidence", chart.draw(chart.diagonal() + _frames(shown, at))


def _coverage(inputs: ReportInputs, shown: Sequence[int], k: int, r: int) -> tuple[str, str] | None:
    predictions = inputs.predictions
    if predictions.variance is None:
        return None
    chart = Chart(
        "nominal probability", "targets inside", (0, 1), (0, 1), _PERCENT, _PERCENT, "targets inside intervals"
    )

    def at(t: int) -> str:
        found, mean = predictions.target_variance((k, t, r)), predictions.mean[k, t, r]
        variance = None if found is None else usable_variance(found)
        if variance is None or not np.isfinite(mean).all():
            return ""
        inside = coverage(z_scores(mean, predictions.target, variance))
        return chart.curve(LEVELS, inside.tolist(), BLUE)

    return "Calibration: targets inside their intervals", chart.draw(chart.diagonal() + _frames(shown, at))


def _predicted(inputs: ReportInputs, shown: Sequence[int], k: int, r: int) -> tuple[str, str]:
    """Return a panel with means against targets of the first output, for at most 200 test points."""
    predictions = inputs.predictions
    step = max(1, math.ceil(len(predictions.target) / 200))
    target, means = predictions.target[::step, 0], predictions.mean[k, :, r, ::step, 0]
    known = np.concatenate([target, means[np.isfinite(means)]])
    low, high = float(known.min()), float(known.max())
    ends = (low, high) if high > low else (low - 0.5, low + 0.5)
    ticks = [(value, f"{value:.3g}") for value in _round(*ends)]
    name = short(predictions.class_names[0], 24) if predictions.class_names else "output 0"
    chart = Chart(f"target ({name})", "predicted mean", ends, ends, ticks, ticks, "predicted means against targets")
    dots = _frames(shown, lambda t: chart.dots(target, means[t], f"{BLUE};fill-opacity:.6", 2.5))
    return "Predicted against target", chart.draw(chart.diagonal() + dots)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _time_places(times: np.ndarray) -> tuple[list[float], list[tuple[float, str]]]:
    """Return the positions of the times on a logarithmic axis, with 0 and infinity at its ends, and the ticks."""
    inner = [float(t) for t in times if 0 < t < math.inf]
    low, high = (math.log10(inner[0]), math.log10(inner[-1])) if inner else (0.0, 0.0)
    gap = max(0.1 * (high - low), 0.5)
    places = [low - gap if t == 0 else high + gap if math.isinf(t) else math.log10(t) for t in times]
    decades = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
    stride = max(1, math.ceil(len(decades) / 6))
    ticks = [(float(d), number(10.0**d)) for d in decades[::stride]]
    if len(decades) < 2:
        ticks = [(math.log10(t), number(t)) for t in (inner if len(inner) < 5 else [inner[0], inner[-1]])]
    ticks += [(place, number(float(t))) for place, t in zip(places, times, strict=True) if t == 0 or math.isinf(t)]
    return places, ticks


def _round(low: float, high: float) -> list[float]:
    """Return some round numbers between two values."""
    step = 10.0 ** math.floor(math.log10((high - low) / 2))
    step = next(m * step for m in (0.5, 1, 2, 5, 10, 20) if (high - low) / (m * step) <= 6)
    return [round(step * i, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _decimals(ends: tuple[float, float]) -> int:
    return 0 if ends[1] - ends[0] > 0.05 else 1
