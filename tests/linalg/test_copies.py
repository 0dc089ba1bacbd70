from __future__ import annotations

import numpy as np
import pytest

from ntkpipe.linalg.copies import Copies, MergedOperator, merged
from ntkpipe.linalg.operator import tile_operator
from ntkpipe.tasks.serial import SerialExecutor
from ntkpipe.tiles.grid import TileGrid
from ntkpipe.tiles.matrix import InMemoryTiles

PAIRS = [(0, 3), (0, 7), (2, 5), (1, 40)]
N = 10


@pytest.fixture
def copies() -> Copies:
    return Copies.of(PAIRS, N)


def projection() -> np.ndarray:
    q = np.eye(N)
    for group in ([0, 3, 7], [2, 5]):
        q[np.ix_(group, group)] = 1 / len(group)
    return q


def test_pairs_beyond_the_points_in_use_do_not_count(copies):
    assert copies.count == 3
    assert copies.sizes.tolist() == [3, 1, 2, 3, 1, 2, 1, 3, 1, 1]
    assert copies.together(np.array([7, 4])).tolist() == [0, 3, 4, 7]
    assert Copies.of([], 4).count == 0


def test_averages_are_the_projection(copies):
    x = np.random.default_rng(0).standard_normal((N, 4))
    np.testing.assert_allclose(copies.average(x), projection() @ x, atol=1e-15)
    a = x @ x.T
    np.testing.assert_allclose(copies.average_matrix(a), projection() @ a @ projection(), atol=1e-14)
    assert Copies.of([], N).average(x) is x


def test_a_merged_operator_is_the_projected_matrix(copies):
    a = np.random.default_rng(1).standard_normal((N, N))
    a = a + a.T
    x = np.random.default_rng(2).standard_normal((N, 3))
    with tile_operator(InMemoryTiles(a, TileGrid(N, N, 4, symmetric=True)), SerialExecutor()) as operator:
        assert merged(operator, Copies.of([], N)) is operator
        made = merged(operator, copies)
        assert isinstance(made, MergedOperator)
        wanted = projection() @ a @ projection()
        assert made.n == N
        np.testing.assert_allclose(made.matmul(x), wanted @ x, atol=1e-13)
        indices = np.array([1, 3, 5, 7])
        np.testing.assert_allclose(made.rows(indices), wanted[indices], atol=1e-13)
        np.testing.assert_array_equal(made.diagonal(), np.diagonal(a))


def test_equal_points_with_other_targets_predict_what_their_mean_does(copies):
    """Ridge regression on all points, and on those without copies with the mean target and a ridge divided by their number."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((N, 12))
    x[[3, 7]], x[5] = x[0], x[2]
    test = rng.standard_normal((4, 12))
    kernel, cross, y = x @ x.T, test @ x.T, rng.standard_normal((N, 2))
    for ridge in (1e-6, 1e-2):
        with_all = cross @ np.linalg.solve(kernel + ridge * np.eye(N), y)
        averaged = cross @ np.linalg.solve(kernel + ridge * np.eye(N), copies.average(y))
        np.testing.assert_allclose(averaged, with_all, atol=1e-7 * np.abs(with_all).max())
