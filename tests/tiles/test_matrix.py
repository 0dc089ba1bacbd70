from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkpipe.tiles.grid import TileGrid
from ntkpipe.tiles.matrix import InMemoryTiles, TileMatrix


@settings(deadline=None, max_examples=30)
@given(data=st.data(), rows=st.integers(1, 20), cols=st.integers(1, 20), edge=st.integers(1, 25))
def test_tiles_are_the_parts_of_the_array(data, rows, cols, edge):
    array = np.arange(rows * cols, dtype=float).reshape(rows, cols)
    m, k = data.draw(st.integers(1, rows)), data.draw(st.integers(1, cols))
    matrix = InMemoryTiles(array, TileGrid(rows, cols, edge)).leading(m, k)
    assert isinstance(matrix, TileMatrix)
    built = np.full((m, k), np.nan)
    for t in matrix.grid:
        tile = matrix.read(t.i, t.j)
        assert tile.shape == t.shape
        assert tile.flags.c_contiguous
        built[t.row_start : t.row_stop, t.col_start : t.col_stop] = tile
    assert np.array_equal(built, array[:m, :k])


def test_a_grid_larger_than_the_array_is_refused():
    with pytest.raises(ValueError, match="smaller"):
        InMemoryTiles(np.zeros((3, 3)), TileGrid(4, 3, 2))
