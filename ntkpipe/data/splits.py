"""Which rows are kept for testing where the data does not say: a seeded draw, with the classes in proportion."""

from __future__ import annotations

import numpy as np

from ntkpipe.data.subsets import stored_order
from ntkpipe.errors import DataError


def drawn_test_rows(n: int, fraction: float, *, seed: int, labels: np.ndarray | None = None) -> np.ndarray:
    """Rows of the test set, ascending; the same on every machine.

    Args:
        n: rows in all.
        fraction: of them that are for testing, between 0 and 1.
        seed: of the draw.
        labels: `(n,)` of any kind, of which each keeps its share to within one row; None draws from all rows alike.

    Raises:
        DataError: if no row is left on one side.
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
    # The largest remainders make up the whole number; of equal ones the first classes.
    for k in np.argsort(-(exact - wanted), kind="stable")[: count - wanted.sum()]:
        wanted[k] += 1
    of_class = classes[order]
    chosen = [order[of_class == k][:share] for k, share in enumerate(wanted)]
    return np.sort(np.concatenate(chosen))
