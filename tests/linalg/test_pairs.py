"""Bounds on the smallest eigenvalue from pairs of rows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ntkpipe.linalg.copies import Copies, merged
from ntkpipe.linalg.operator import DenseOperator, tile_operator
from ntkpipe.tasks.serial import SerialExecutor
from ntkpipe.tiles.grid import TileGrid
from ntkpipe.tiles.matrix import InMemoryTiles


def kernel(n: int, gap: float, dtype: str = "float64") -> np.ndarray:
    """An RBF of random points, the first and the last of which lie `gap` apart."""
    x = np.random.default_rng(n).standard_normal((n, 3))
    x[-1] = x[0] + gap / math.sqrt(3)
    return np.exp(-((x[:, None] - x[None]) ** 2).sum(-1)).astype(dtype)


@pytest.mark.parametrize("edge", [3, 16, 100])
@pytest.mark.parametrize("workers", [1, 3])
def test_the_closest_pair_bounds_the_smallest_eigenvalue(edge, workers):
    n, gap = 41, 1e-3
    a = kernel(n, gap)
    matrix = InMemoryTiles(a, TileGrid(n, n, edge, symmetric=True))
    with tile_operator(matrix, SerialExecutor(workers)) as operator:
        found = operator.pair_bound()
    brute = min(1 - abs(a[i, j]) for i in range(n) for j in range(i))
    assert found == pytest.approx(brute, rel=1e-12)
    assert found == pytest.approx(1 - math.exp(-(gap**2)), rel=1e-6)
    assert np.linalg.eigvalsh(a)[0] <= found
    assert DenseOperator(a).pair_bound() == pytest.approx(brute, rel=1e-12)


def test_opposite_points_count_like_equal_ones():
    a = np.array([[2.0, -1.9, 0.1], [-1.9, 2.2, 0.0], [0.1, 0.0, 3.0]])
    assert DenseOperator(a).pair_bound() == pytest.approx(0.2)
    assert np.linalg.eigvalsh(a)[0] <= 0.2


def test_copies_are_no_pairs():
    n = 30
    a = kernel(n, 0.0)
    matrix = InMemoryTiles(a, TileGrid(n, n, 8, symmetric=True))
    with tile_operator(matrix, SerialExecutor(1)) as operator:
        assert operator.pair_bound() == 0.0
        found = merged(operator, Copies.of([(0, n - 1)], n)).pair_bound()
    others = min(1 - abs(a[i, j]) for i in range(n) for j in range(i) if (i, j) != (n - 1, 0))
    assert found == pytest.approx(others, rel=1e-12)


def test_float64_tiles_are_looked_at_in_float64_whatever_the_products():
    n, gap = 20, 1e-5
    a = kernel(n, gap)
    matrix = InMemoryTiles(a, TileGrid(n, n, 7, symmetric=True))
    with tile_operator(matrix, SerialExecutor(1), products="float32", memory_bytes=1 << 20) as operator:
        operator.matmul(np.ones((n, 1)))  # keeps tiles in float32
        assert operator.pair_bound() == pytest.approx(gap**2, rel=1e-4)


def test_one_row_has_no_pair():
    assert DenseOperator(np.ones((1, 1))).pair_bound() == math.inf
