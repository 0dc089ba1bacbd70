"""Draws a figure that compares samples of a finite network's weight posterior with the infinite posterior."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ntkpipe.report.style import BLUE, GREY, PAGE_WIDTH, PALETTE, VERMILLION, render

if TYPE_CHECKING:
    from ntkpipe.finite.posterior import WeightSamples

# Largest number of points in a scatter plot.
_POINTS = 3000


def write_sample_figure(
    samples: WeightSamples, infinite: tuple[np.ndarray, np.ndarray] | None, folder: Path
) -> tuple[Path, Path]:
    """Write the figure as PNG and SVG, and return both paths.

    Args:
        samples: samples of the posterior.
        infinite: mean (p, c) and variance (p,) of the infinite posterior; None leaves out both comparisons.
        folder: folder of the files, created if absent.
    """
    return render(lambda: _draw(samples, infinite), folder, "sample")


def _draw(samples: WeightSamples, infinite: tuple[np.ndarray, np.ndarray] | None) -> Figure:
    figure = Figure(figsize=(PAGE_WIDTH if infinite is not None else PAGE_WIDTH / 2.5, 2.5), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, 3 if infinite is not None else 1))
    if infinite is not None:
        mean, variance = infinite
        _compare(axes[0], mean, samples.mean, samples.mean_error, "Posterior means")
        deviation = np.broadcast_to(np.sqrt(variance)[:, None], mean.shape)
        _compare(axes[1], deviation, np.sqrt(samples.variance), None, "Posterior standard deviations")
    (_traces if samples.method == "pcn" else _weights)(axes[-1], samples)
    return figure


def _compare(axes: Axes, infinite: np.ndarray, finite: np.ndarray, error: np.ndarray | None, title: str) -> None:
    axes.set_title(title)
    step = max(1, infinite.size // _POINTS)
    x, y = infinite.ravel()[::step], finite.ravel()[::step]
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    axes.plot([low, high], [low, high], color=GREY, linewidth=0.9, linestyle=(0, (4, 2)))
    spread = None if error is None else error.ravel()[::step]
    axes.errorbar(x, y, spread, fmt=".", markersize=2.5, color=BLUE, ecolor=BLUE, elinewidth=0.5, alpha=0.6)
    axes.set_xlabel("infinite network")
    axes.set_ylabel("finite network")


def _weights(axes: Axes, samples: WeightSamples) -> None:
    axes.set_title("Log importance weights")
    values = samples.log_weights - samples.log_weights.max()
    axes.hist(values, bins=40, color=PALETTE[0])
    axes.axvline(float(np.sum(samples.weights * values)), color=VERMILLION, linewidth=1.2)
    axes.set_xlabel("relative to the largest, in nats")
    axes.set_ylabel("samples")


def _traces(axes: Axes, samples: WeightSamples) -> None:
    axes.set_title("Log likelihood of chains")
    for k, chain in enumerate(samples.log_weights.reshape(samples.chains, -1)):
        axes.plot(chain, color=PALETTE[k % len(PALETTE)], linewidth=0.7)
    axes.set_xlabel("sample")
    axes.set_ylabel("nats")
