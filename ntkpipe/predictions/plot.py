"""Draws one figure of predictions for notebooks. The report of a run has more figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ntkpipe.predictions.schema import Predictions


def plot_errors(predictions: Predictions) -> Any:
    """Return the figure of `Predictions.plot`: test errors against training time or ridge."""
    from ntkpipe.predictions.shown import ShownFigure

    table = predictions.metrics()
    shown = [("mse", "test mean squared error")]
    if predictions.is_classification:
        shown.insert(0, ("accuracy", "test accuracy"))
    along, across = ("time", "ridge") if len(predictions.times) > 1 else ("ridge", "time")
    places = predictions.times if along == "time" else predictions.ridges
    figure = ShownFigure(figsize=(4.2 * len(shown), 3.2), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for (kernel, other), rows in table.groupby(["kernel", across], sort=False):
            axes.plot(np.arange(len(rows)), rows[name], marker="o", markersize=3, label=f"{kernel}, {across} {other:g}")
        # Times and ridges may be 0, and times may be inf, so the ticks are equally spaced.
        axes.set_xticks(np.arange(len(places)), [f"{place:g}" for place in places], rotation=90)
        axes.set_xlabel("training time (gradient steps)" if along == "time" else f"ridge ({predictions.ridge_scale})")
        axes.set_ylabel(label)
        axes.legend(fontsize="small")
    return figure
