"""Draws figures of the predictions: confusion matrix, most confident mistakes, predicted against target."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ntkpipe.report.inputs import ReportInputs, confusion_matrix
from ntkpipe.report.style import (
    BLUE,
    GREY,
    INK,
    PAGE_WIDTH,
    PALE,
    PALETTE,
    VERMILLION,
    is_for_phones,
    literal,
    number,
    row_of_panels,
    short,
    width_of,
)

SHARES = LinearSegmentedColormap.from_list("shares", ["#E8F1F8", "#CFE3F1", "#6BAED6", BLUE, "#08306B"])
# Like INK, but unchanged in dark mode, because the cells stay light.
_ON_CELLS = "#232323"
MISTAKES_SHOWN = 24
COLUMNS = 6


def confusion(inputs: ReportInputs) -> Figure:
    """Draw the confusion matrix of the headline entry. Colours show shares of the true class, numbers are counts."""
    predictions, entry = inputs.predictions, inputs.headline()
    assert predictions.label is not None
    classes = len(predictions.class_names)
    counts = confusion_matrix(predictions.label, predictions.mean[entry].argmax(1), classes)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [short(name, 14) for name in predictions.class_names]
    edge = min(7.4, max(1.7, (0.46 if classes <= 12 else 0.32) * classes))
    edge = min(edge, max(width_of(edge + 1.9) - 1.1, 0.2 * classes))  # on phones, cells still hold three digits
    figure = Figure(figsize=(edge + 1.9, edge + 1.0), layout="constrained")
    axes = figure.subplots()
    # Empty cells are transparent, so that dark mode shows its background.
    image = axes.imshow(np.ma.masked_equal(shares, 0), cmap=SHARES, vmin=0, vmax=1, interpolation="nearest")
    axes.grid(visible=False)
    axes.spines[:].set(visible=True, color=PALE)
    points_per_class = 72 * edge / classes
    _class_ticks(axes, names, points_per_class)
    if points_per_class >= 16:
        size = min(8.5, 0.42 * points_per_class, 1.35 * points_per_class / len(str(counts.max())))
        for i, j in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[i, j] > 0.5 else _ON_CELLS
            axes.text(j, i, f"{counts[i, j]}", ha="center", va="center", fontsize=size, color=colour)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    # The colour bar is placed in the axes, so that its height equals the matrix's for names of any length.
    bar = figure.colorbar(image, cax=axes.inset_axes((1 + 0.12 / edge, 0, 0.12 / edge, 1)))
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    bar.set_label("share of the true class")
    return figure


def _class_ticks(axes, names: list[str], points_per_class: float) -> None:
    """Label the ticks with all names if they are legible, otherwise with the numbers of some classes."""
    classes = len(names)
    size = min(8.0, 0.95 * points_per_class)
    if size >= 4:
        positions, texts = list(range(classes)), names
    else:
        size, stride = 8.0, 10 * math.ceil(classes / 200)
        positions = list(range(0, classes, stride))
        texts = [str(i) for i in positions]
    turned = any(len(text) * 0.6 * size > 0.95 * points_per_class for text in texts)
    rotation = 0 if not turned else (45 if points_per_class > 2.2 * size else 90)
    axes.set_xticks(positions, texts, fontsize=size, rotation=rotation, ha="right" if rotation == 45 else "center",
                    rotation_mode="anchor" if rotation == 45 else "default")  # fmt: skip
    axes.set_yticks(positions, texts, fontsize=size)
    axes.tick_params(length=0, pad=3)
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        literal(text)


def confident_mistakes(inputs: ReportInputs) -> tuple[np.ndarray, np.ndarray]:
    """Return the wrongly predicted test points of the headline entry, the most confident first.

    Returns:
        Their positions among the test points, and the mean of the predicted class minus the mean of the true class.
    """
    predictions, entry = inputs.predictions, inputs.headline()
    assert predictions.label is not None
    mean, label = predictions.mean[entry], predictions.label
    predicted = mean.argmax(1)
    wrong = np.flatnonzero(predicted != label)
    margin = mean[wrong, predicted[wrong]] - mean[wrong, label[wrong]]
    order = np.argsort(-margin, kind="stable")
    return wrong[order], margin[order]


def mistakes(inputs: ReportInputs) -> Figure:
    """Draw images of the most confident mistakes of the headline entry, or of its largest errors for regression."""
    predictions, entry = inputs.predictions, inputs.headline()
    captions: list[tuple[str, str, str]] = []  # above the image, below that, and at its right
    mean = predictions.mean[entry]
    if predictions.label is not None:
        points, margins = confident_mistakes(inputs)
        points, names = points[:MISTAKES_SHOWN], predictions.class_names
        for point, margin in zip(points, margins, strict=False):
            true, predicted = predictions.label[point], mean[point].argmax()
            captions.append((short(names[true], 14), short(names[predicted], 11), f"{margin:+.2f}"))
    else:
        errors = np.sqrt(np.mean((mean - predictions.target) ** 2, axis=1))
        points = np.argsort(-errors, kind="stable")[:MISTAKES_SHOWN]
        for point in points:
            if mean.shape[1] == 1:
                captions.append((number(predictions.target[point, 0]), number(mean[point, 0]), ""))
            else:
                captions.append((f"point {predictions.test_index[point]}", f"error {number(errors[point])}", ""))
    across = COLUMNS // 2 if is_for_phones() else COLUMNS
    pitch, columns = width_of(PAGE_WIDTH) / across, min(across, len(points))
    rows = math.ceil(len(points) / columns)
    assert inputs.images is not None
    # The layout is computed here, in inches, because matplotlib's engines do not support two lines in two colours above
    # each image.
    text, edge = 0.33, 0.06
    width, height = max(columns, 3) * pitch, rows * (pitch + text)
    figure = Figure(figsize=(width, height))
    for slot, point in enumerate(points):
        left, top = (slot % columns) * pitch + edge, height - (slot // columns) * (pitch + text)
        side = pitch - 2 * edge
        axes = figure.add_axes((left / width, (top - text - side) / height, side / width, side / height))
        axes.set_axis_off()
        axes.imshow(displayable(inputs.images[point]), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        above, below, right = captions[slot]
        for x, drop, line, colour, align in (
            (left, 0.14, above, INK, "left"),
            (left, 0.28, below, VERMILLION, "left"),
            (left + side, 0.28, right, VERMILLION, "right"),
        ):
            y = (top - drop) / height
            literal(figure.text(x / width, y, line, fontsize=7, color=colour, va="baseline", ha=align))
    return figure


def displayable(image: np.ndarray) -> np.ndarray:
    """Convert an image (h, w, c) to (h, w, 3) for three channels, or else to the mean over channels (h, w), in 0..1."""
    image = np.clip(np.nan_to_num(image), 0, 1)
    return image if image.shape[-1] == 3 else image.mean(-1)


def scatter(inputs: ReportInputs) -> Figure:
    """Draw predicted against target values of the headline entry, for regression."""
    predictions, entry = inputs.predictions, inputs.headline()
    mean, target = predictions.mean[entry], predictions.target
    outputs = mean.shape[1]
    figure, (axes,) = row_of_panels(1, 3.7, width=3.9)
    low, high = float(min(np.nanmin(mean), target.min())), float(max(np.nanmax(mean), target.max()))
    axes.plot([low, high], [low, high], color=GREY, linewidth=0.9, linestyle=(0, (4, 2)), zorder=3)
    named = 1 < outputs <= len(PALETTE)
    colours = PALETTE if named else (BLUE,) * outputs
    size = 14 if mean.size < 500 else (6 if mean.size < 5000 else 2)
    for i in range(outputs):
        variance = predictions.target_variance(entry)
        if variance is not None and len(mean) <= 200:
            error = 2 * np.sqrt(np.maximum(variance if variance.ndim == 1 else variance[:, i], 0))
            axes.errorbar(
                target[:, i], mean[:, i], yerr=error, fmt="none", ecolor=colours[i], alpha=0.3, elinewidth=0.8
            )
        # Dots are rasterised, because tens of thousands of vector shapes would make the file slow to open.
        axes.scatter(target[:, i], mean[:, i], s=size, color=colours[i], alpha=0.6, linewidths=0, rasterized=True,
                     label=short(predictions.class_names[i]))  # fmt: skip
    axes.set(xlabel="target", ylabel="predicted mean")
    if named:
        legend = axes.legend(loc="upper left", markerscale=max(1.0, 3 / math.sqrt(size)), handletextpad=0.2)
        for text in legend.get_texts():
            literal(text)
    return figure
