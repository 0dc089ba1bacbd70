"""The data that a report shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ntkpipe.predictions.choice import chosen_entries
from ntkpipe.predictions.schema import Predictions


@dataclass(frozen=True, eq=False)
class ReportInputs:
    """All data that the figures and the page show.

    Args:
        predictions: predictions of the run.
        metrics: metrics from `compute_metrics(predictions)`.
        spectra: by kernel, (m,) eigenvalues of the train-train kernel in any order.
        spectrum_kind: `Ritz values` (of Krylov) or `eigenvalues`.
        convergence: by kernel, `{"steps": [...], "bound": [...]}` of an iterative solver; empty for a direct solver. If
            the solver stops by estimates, also `estimates`, rows of (step, how much further steps may still change
            predictions, limit of this change at which it stops).
        tolerance: bound at which the solver stops, drawn into the convergence figure; None draws none.
        images: (p, h, w, channels) test images scaled to 0..1 in the order of `predictions.test_index`, or None.
        summary: JSON-ready facts for the page. These optional keys have a special place: `title` (text), `warnings` and
            `signals` (lists of texts), `max_learning_rate` (by kernel), `timings` (seconds by stage), `data`, `kernel`,
            `hardware`, `versions`, `config` (nested values). Any other key becomes a section.
    """

    predictions: Predictions
    metrics: Mapping[str, Any]
    spectra: Mapping[str, np.ndarray] = field(default_factory=dict)
    spectrum_kind: str = "Ritz values"
    convergence: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tolerance: float | None = None
    images: np.ndarray | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.images is not None and (self.images.ndim != 4 or len(self.images) != len(self.predictions.test_index)):
            raise ValueError(
                f"images has shape {self.images.shape}, wanted (p, h, w, channels) with p = "
                f"{len(self.predictions.test_index)} test points"
            )

    def headline(self) -> tuple[int, int, int]:
        """Return the entry of the first kernel that is shown in detail. It is never chosen by test images.

        It is the choice of `predict.selection` on training images, or else the longest time and the first ridge.
        """
        kernel = self.predictions.kernels[0]
        if (chosen := chosen_entries(self.predictions).get(kernel)) is not None:
            return chosen
        return 0, len(self.predictions.times) - 1, 0

    def metric(self, entry: tuple[int, int, int]) -> Mapping[str, Any]:
        """Return the metrics of the entry (kernel, time, ridge)."""
        _, T, R = self.predictions.shape[:3]
        return self.metrics["entries"][(entry[0] * T + entry[1]) * R + entry[2]]


def confusion_matrix(label: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Return counts of test points by true class (rows) and predicted class (columns), (classes, classes) int64."""
    return np.bincount(label * classes + predicted, minlength=classes * classes).reshape(classes, classes)
