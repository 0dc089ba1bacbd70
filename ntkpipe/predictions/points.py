"""Data of test points besides their kernel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class TestPoints:
    """Test points in stored order, which is the order of the rows of a test kernel.

    Args:
        index: (p,) int64 positions in the source.
        class_names: c names of the classes, or of the outputs of regression.
        label: (p,) int64 labels; None for regression or if they are unknown.
        target: (p, c) float64 targets in the units of the data; NaN where unknown.
        mean: (c,) mean that was subtracted from the training targets and is added to predictions; None means zero.
        scale: (c,) divisor of the training targets, by which predictions are multiplied; None means one.
        classes: whether the outputs belong to classes, even if no label is known.
        initial: (p, c) outputs at the start of training, which are added to predictions; None means zero.
    """

    __test__ = False  # tells pytest that this is not a test class

    index: np.ndarray
    class_names: tuple[str, ...]
    label: np.ndarray | None
    target: np.ndarray
    mean: np.ndarray | None = None
    scale: np.ndarray | None = None
    classes: bool = False
    initial: np.ndarray | None = None

    def exported(self, means: np.ndarray, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Convert means from the units of the solve to the units of the data.

        Args:
            means: (..., k, c) means of the points `rows`.
            rows: the k rows of these points, in stored order.
        """
        values = means if self.initial is None else means + self.initial[rows]
        return values if self.scale is None else values * self.scale + self.mean
