"""The tiled factorisation by processes of Ray, some of which die."""

from __future__ import annotations

import numpy as np
import pytest

from ntkpipe.errors import NumericalError
from ntkpipe.linalg.factor.factorise import IndefiniteError, factorise
from ntkpipe.linalg.factor.posterior import inverse_diagonal
from ntkpipe.linalg.factor.workspace import release
from ntkpipe.storage.local import LocalStore
from ntkpipe.tasks.serial import SerialExecutor
from ntkpipe.tiles.grid import TileGrid
from ntkpipe.tiles.matrix import InMemoryTiles

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_processes_make_the_bits_that_one_makes(session, tmp_path):
    n = 200
    a = np.random.default_rng(0).normal(size=(n, n))
    a = a @ a.T / n + np.eye(n)
    tiles, b = InMemoryTiles(a, TileGrid(n, n, 64, symmetric=True)), np.ones((n, 3))

    def run(executor, folder, matrix=tiles):
        return factorise(
            matrix,
            name="a",
            store=LocalStore(tmp_path / folder),
            prefix="cholesky/k",
            executor=executor,
            memory_bytes=1 << 28,
            edge=32,
        )

    one, many = run(SerialExecutor(), "one"), run(session, "many")
    try:
        assert many.computed == many.plan.tasks == 28
        for t in one.factor.job.tiles.identity.grid:
            np.testing.assert_array_equal(many.factor.job.tiles.read(t.i, t.j), one.factor.job.tiles.read(t.i, t.j))
        np.testing.assert_array_equal(many.factor.apply_inverse(b), one.factor.apply_inverse(b))
        inverse, _ = inverse_diagonal(many.factor)
        np.testing.assert_allclose(inverse, np.diag(np.linalg.inv(a)), rtol=1e-12)
        assert run(session, "many").computed == 0
        indefinite = InMemoryTiles(a - 2 * np.eye(n), tiles.grid)
        with pytest.raises(IndefiniteError, match="a ridge of at least") as caught:
            run(session, "indefinite", indefinite)
        assert isinstance(caught.value, NumericalError)
        assert caught.value.tile == (caught.value.pivot - 1) // 32
    finally:
        release()
