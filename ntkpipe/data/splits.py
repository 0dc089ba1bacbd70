"""Draws test rows with a seed and with the classes in proportion, for data without a given split."""

from __future__ import annotations

import numpy as np

from ntkpipe.data.subsets import stored_order
from ntkpipe.errors import DataError


def drawn_test_rows(n: int, fraction: float, *, seed: int, labels: np.ndarray | None = None) -> np.ndarray:
    """Draw the rows of the test set. The draw is the same on every machine.

    Args:
        n: number of all rows.
        fraction: share of test rows, between 0 and 1.
        seed: seed of the draw.
        labels: `(n,)` labels of any kind. Each class keeps its share to within one row, and a training row if possible. None
            draws from all rows.

    Returns:
        Row numbers of the test set, ascending int64.

    Raises:
        DataError: if training or test set would be empty.
    """
    count = round(n * fraction)
    if not 0 < count < n:
        raise DataError(
            f"data.test_fraction={fraction:g} of {n} rows leaves {count} for testing and {n - count} for training: each needs "
            "at least one"
        )
    order = stored_order(n, seed=seed, part="split")
    if labels is None:
        return np.sort(order[:count])
    _, classes = np.unique(labels, return_inverse=True)
    classes = classes.reshape(-1)
    exact = np.bincount(classes) * (count / n)
    wanted = np.floor(exact).astype(np.int64)
    # The largest remainders are rounded up to reach the total, first of classes that keep a training row; ties go to the
    # first classes.
    has_more = wanted + 1 < np.bincount(classes)
    for k in np.lexsort((-(exact - wanted), ~has_more))[: count - wanted.sum()]:
        wanted[k] += 1
    of_class = classes[order]
    chosen = [order[of_class == k][:share] for k, share in enumerate(wanted)]
    return np.sort(np.concatenate(chosen))
