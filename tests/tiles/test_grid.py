from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkpipe.errors import ConfigError
from ntkpipe.tiles.grid import TileGrid

sizes = st.integers(1, 40)


@settings(deadline=None)
@given(n=sizes, edge=st.integers(1, 50))
def test_a_symmetric_grid_covers_the_lower_triangle_once(n, edge):
    grid = TileGrid(n, n, edge, symmetric=True)
    hits = np.zeros((n, n), int)
    tiles = list(grid)
    for t in tiles:
        hits[t.row_start : t.row_stop, t.col_start : t.col_stop] += 1
        assert t.shape == hits[t.row_start : t.row_stop, t.col_start : t.col_stop].shape
        assert min(t.shape) > 0
    assert (hits[np.tril_indices(n)] == 1).all()
    assert (hits <= 1).all()
    assert len(tiles) == len(grid) == len(set(tiles))
    # With the transposes of the tiles off the diagonal, everything is covered once.
    mirrored = hits + sum(
        (
            np.pad(np.ones(t.shape).T, ((t.col_start, n - t.col_stop), (t.row_start, n - t.row_stop)))
            for t in tiles
            if not t.is_diagonal
        ),
        np.zeros((n, n)),
    )
    assert (mirrored == 1).all()


@settings(deadline=None)
@given(rows=sizes, cols=sizes, edge=st.integers(1, 50))
def test_a_rectangular_grid_covers_everything_once(rows, cols, edge):
    grid = TileGrid(rows, cols, edge)
    hits = np.zeros((rows, cols), int)
    for t in grid:
        hits[t.row_start : t.row_stop, t.col_start : t.col_stop] += 1
    assert (hits == 1).all()
    assert len(list(grid)) == len(grid)


@settings(deadline=None)
@given(data=st.data(), n=sizes, edge=st.integers(1, 20), symmetric=st.booleans())
def test_a_leading_block_shares_the_addresses(data, n, edge, symmetric):
    grid = TileGrid(n, n, edge, symmetric)
    m = data.draw(st.integers(1, n))
    block = grid.leading(m) if symmetric else grid.leading(m, n)
    for t in block:
        whole = grid.tile(t.i, t.j)
        assert (t.row_start, t.col_start) == (whole.row_start, whole.col_start)
        assert t.row_stop == min(whole.row_stop, block.rows)
        assert t.col_stop == min(whole.col_stop, block.cols)
    addresses = [(t.i, t.j) for t in block]
    assert addresses == [(t.i, t.j) for t in itertools.islice(grid, len(block))]
    assert grid.leading(n) == grid


@pytest.mark.parametrize("address", [(0, 1), (3, 0), (-1, 0), (0, -1)])
def test_addresses_outside_are_refused(address):
    with pytest.raises(IndexError, match="no tile"):
        TileGrid(9, 9, 3, symmetric=True).tile(*address)


@pytest.mark.parametrize("arguments", [(0, 3, 1), (3, 0, 1), (3, 3, 0), (3, 4, 1, True)])
def test_impossible_grids_are_refused(arguments):
    with pytest.raises(ConfigError):
        TileGrid(*arguments)


def test_a_block_larger_than_the_matrix_is_refused():
    with pytest.raises(ConfigError, match="exceeds"):
        TileGrid(5, 5, 2, symmetric=True).leading(6)


def test_millions_of_tiles_cost_nothing_before_they_are_used():
    grid = TileGrid(10**9, 10**9, 10, symmetric=True)
    assert len(grid) == 10**8 * (10**8 + 1) // 2
    assert [(t.i, t.j) for t in itertools.islice(grid, 3)] == [(0, 0), (1, 0), (1, 1)]
