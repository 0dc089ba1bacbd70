"""What a report is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ntkpipe.predictions.choice import chosen_entries
from ntkpipe.predictions.schema import Predictions


@dataclass(frozen=True, eq=False)
class ReportInputs:
    """Everything that the figures and the page show.

    Args:
        predictions: of the run.
        metrics: as `compute_metrics(predictions)` returns them.
        spectra: kernel -> (m,) eigenvalues of the train-train kernel in any order.
        spectrum_kind: what those are: `Ritz values` (of Krylov) or `eigenvalues`.
        convergence: kernel -> `{"steps": [...], "bound": [...]}` of the iterative solver; empty for a direct one.
        tolerance: bound at which the solver stops, drawn into the convergence figure.
        images: (p, h, w, channels) test images scaled to 0..1 in the order of `predictions.test_index`, or None.
        summary: JSON-ready facts for the page. Keys with a place of their own, all optional: `title` (text),
            `warnings` and `signals` (lists of texts), `max_learning_rate` (kernel -> number), `timings` (stage -> seconds),
            `data`, `kernel`, `hardware`, `versions`, `config` (nested values). Any other key becomes a section.
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
        """The entry shown in detail, never chosen by test images.

        Of the first kernel, what `predict.selection` chose on training images; otherwise the longest time and first ridge.
        """
        kernel = self.predictions.kernels[0]
        if (chosen := chosen_entries(self.predictions).get(kernel)) is not None:
            return chosen
        return 0, len(self.predictions.times) - 1, 0

    def metric(self, entry: tuple[int, int, int]) -> Mapping[str, Any]:
        """Metrics of the entry (kernel, time, ridge)."""
        _, T, R = self.predictions.shape[:3]
        return self.metrics["entries"][(entry[0] * T + entry[1]) * R + entry[2]]
