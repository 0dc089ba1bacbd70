"""Choice of the pairs of points on which the errors of kernel entries are measured: close pairs and random pairs."""

from __future__ import annotations

import numpy as np

from ntkpipe.dynamics.sampling import sample_indices
from ntkpipe.gram.plan import GramPlan
from ntkpipe.planning.sample_rows import FLOAT64_COST, SAMPLE_SHARE
from ntkpipe.sources.source import KernelSource
from ntkpipe.tiles.layout import Kernel

# Number of rows and columns of the measured pairs.
_ROWS, _COLUMNS = 8, 64


def close_pairs(
    source: KernelSource, indices: np.ndarray, exact: dict[Kernel, np.ndarray], n: int, tiles: GramPlan
) -> tuple[np.ndarray, np.ndarray]:
    """Training points with the closest other points, and these other points with some random ones.

    Args:
        source: of the kernel.
        indices: (k,) sampled training points.
        exact: their rows (k, n) of every kernel.
        n: number of training points in use.
        tiles: plan of the tiles, whose cost limits the number of random points.
    """
    kernel = _similarity(exact)
    diagonal = _roots(source.diagonal(kernel, "train", n))
    cosine = exact[kernel] / np.outer(diagonal[indices], diagonal)
    cosine[np.arange(len(indices)), indices] = -1.0
    closest = cosine.max(axis=1)
    chosen = np.sort(np.argsort(-closest, kind="stable")[:_ROWS])
    count = _COLUMNS
    if tiles.cost.input_entries > 1:  # pairs of images are slow, and each is evaluated two or three times
        affordable = SAMPLE_SHARE * tiles.pairs / (len(chosen) * FLOAT64_COST)
        count = int(np.clip(affordable, 2 * len(chosen), count))
    random = sample_indices(n, count - len(chosen), seed=2)
    return indices[chosen], np.unique([*cosine[chosen].argmax(axis=1), *random])


def close_test_pairs(
    source: KernelSource, exact: dict[Kernel, np.ndarray], sampled: np.ndarray, n: int, p: int
) -> tuple[np.ndarray, np.ndarray]:
    """Test points that are closest to sampled training points, and these training points with some random ones.

    Args:
        source: of the kernel.
        exact: columns (p, k) of every test-train kernel.
        sampled: (k,) training points of these columns.
        n: number of training points in use.
        p: number of test points in use.
    """
    kernel = _similarity(exact)
    left, right = _roots(source.diagonal(kernel, "test", p)), _roots(source.diagonal(kernel, "train", n))
    cosine = exact[kernel] / np.outer(left, right[sampled])
    chosen = np.sort(np.argsort(-cosine.max(axis=1), kind="stable")[:_ROWS])
    random = sample_indices(n, _COLUMNS - len(chosen), seed=2)
    return chosen, np.unique([*sampled[cosine[chosen].argmax(axis=1)], *random])


def _similarity(exact: dict[Kernel, np.ndarray]) -> Kernel:
    """The kernel that defines which points are close."""
    return "nngp" if "nngp" in exact else next(iter(exact))


def _roots(diagonal: np.ndarray) -> np.ndarray:
    """Square roots of a diagonal, above 0."""
    return np.sqrt(np.maximum(diagonal, np.finfo(np.float64).tiny))
