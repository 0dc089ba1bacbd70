"""What is known of test points besides their kernel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class TestPoints:
    """Test points in stored order, which is that of the rows of a test kernel.

    Args:
        index: (p,) int64, their places in the source.
        class_names: c names; those of the outputs in regression.
        label: (p,) int64, or None in regression.
        target: (p, c) float64, in the units of the data; NaN where nobody knows them.
        mean: (c,) that was taken from the training targets before they were solved for, and is added to predictions; None is nothing.
        scale: (c,) that they were divided by, and predictions are multiplied by.
        classes: whether outputs are those of classes, also where no label is known.
        initial: (p, c) outputs that training starts from, which are added to predictions; None is zero.
    """

    __test__ = False  # not a test class, whatever pytest thinks of its name

    index: np.ndarray
    class_names: tuple[str, ...]
    label: np.ndarray | None
    target: np.ndarray
    mean: np.ndarray | None = None
    scale: np.ndarray | None = None
    classes: bool = False
    initial: np.ndarray | None = None

    def exported(self, means: np.ndarray, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Means in the units of the data, from those that were solved for.

        Args:
            means: (..., k, c), of the points `rows`.
            rows: of these k points, in stored order.
        """
        values = means if self.initial is None else means + self.initial[rows]
        return values if self.scale is None else values * self.scale + self.mean
