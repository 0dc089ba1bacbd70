from __future__ import annotations

import itertools

import numpy as np
import pytest

from ntkpipe.linalg.block_tridiagonal import BlockTridiagonal, LastRows

EPS = np.finfo(np.float64).eps


def positive(sizes, smallest=0.1, seed=0):
    """Blocks of a symmetric matrix whose smallest eigenvalue is this."""
    rng = np.random.default_rng(seed)
    diagonals = [(lambda g: g + g.T)(rng.normal(size=(k, k))) for k in sizes]
    couplings = [rng.normal(size=(b, a)) for a, b in itertools.pairwise(sizes)]
    shift = smallest - np.linalg.eigvalsh(BlockTridiagonal(diagonals, couplings).dense())[0]
    return BlockTridiagonal([d + shift * np.eye(len(d)) for d in diagonals], couplings)


@pytest.mark.parametrize(
    "sizes", [[1], [3], [2, 2, 2], [5, 5, 4, 4, 1], [4] * 20, [7, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]]
)
def test_the_smallest_eigenvalue_and_its_last_block_row(sizes):
    matrix = positive(sizes)
    dense = matrix.dense()
    np.testing.assert_array_equal(dense, dense.T)
    assert matrix.size == len(dense) == sum(sizes)
    value, last = matrix.smallest()
    values, vectors = np.linalg.eigh(dense)
    assert value == pytest.approx(values[0], rel=1e-5)
    expected = vectors[-sizes[-1] :, 0]
    np.testing.assert_allclose(np.abs(last), np.abs(expected), atol=1e-4)


def test_indefinite_and_headed_matrices_have_no_quick_answer():
    matrix = positive([3] * 9, smallest=-1.0)
    assert matrix.smallest() is None
    assert BlockTridiagonal([], []).smallest() is None
    headed = BlockTridiagonal([np.eye(2)], [], np.array([1.0, 2.0]), np.ones((2, 2)))
    assert headed.smallest() is None
    np.testing.assert_array_equal(headed.dense(), [[1, 0, 1, 1], [0, 2, 1, 1], [1, 1, 1, 0], [1, 1, 0, 1]])


@pytest.mark.parametrize("shifts", [[0.0, 1e-3, 10.0], [1j, -5 + 2j, 0.1 - 1e-2j]])
def test_last_rows_follow_a_growing_matrix(shifts):
    sizes = [4, 4, 3, 3, 3, 1, 1]
    matrix, start = positive(sizes), np.random.default_rng(1).normal(size=(4, 6))
    rows = LastRows(np.array(shifts), start)
    for j in (1, 2, 5, 7):
        part = BlockTridiagonal(matrix.diagonals[:j], matrix.couplings[: j - 1])
        rows.extend(part)
        for i, shift in enumerate(shifts):
            inverse = np.linalg.inv(part.dense() + shift * np.eye(part.size))
            bound = 100 * EPS * np.linalg.cond(inverse) * np.linalg.norm(inverse, 2)
            np.testing.assert_allclose(rows.inverse[i], inverse[-sizes[j - 1] :, -sizes[j - 1] :], atol=bound, rtol=0)
            expected = inverse[-sizes[j - 1] :, :4] @ start
            np.testing.assert_allclose(rows.rows[i], expected, atol=bound * np.linalg.norm(start), rtol=0)
