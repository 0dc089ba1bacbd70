from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ntkpipe.storage.local import LocalStore
from ntkpipe.tiles.identity import GramIdentity
from ntkpipe.tiles.store import GramStore


@dataclasses.dataclass(frozen=True)
class Problem:
    """A small problem whose every value is known: two symmetric kernels and their test rows."""

    identity: GramIdentity
    arrays: dict[tuple[str, str], np.ndarray]

    def tile(self, block, i, j):
        grid = GramStore(LocalStore("unused"), "x", self.identity).grid(block)
        t = grid.tile(i, j)
        return {k: self.arrays[k, block][t.row_start : t.row_stop, t.col_start : t.col_stop] for k in ("nngp", "ntk")}

    def diagonal(self, block, i):
        e = self.identity.edge
        return {k: self.arrays[k, f"diagonal/{block}"][i * e : (i + 1) * e] for k in ("nngp", "ntk")}

    def fill(self, gram):
        for block in gram.blocks:
            for t in gram.missing(block):
                gram.write_tile(block, t.i, t.j, self.tile(block, t.i, t.j), seconds=0.5, provenance={"jax": "0"})
            for i in gram.missing_diagonal(block):
                gram.write_diagonal(block, i, self.diagonal(block, i))
        return gram


def make_problem(n_train=10, n_test=5, edge=4, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    identity = GramIdentity("data", "arch", "1", "float64", dtype, edge, n_train, n_test, spec=[{"op": "relu"}])
    arrays = {}
    for kernel in ("nngp", "ntk"):
        square = rng.standard_normal((n_train, n_train))
        arrays[kernel, "train"] = (square @ square.T).astype(dtype)
        arrays[kernel, "test"] = rng.standard_normal((n_test, n_train)).astype(dtype)
        arrays[kernel, "diagonal/train"] = rng.random(n_train)
        arrays[kernel, "diagonal/test"] = rng.random(n_test)
    return Problem(identity, arrays)


@pytest.fixture
def problem():
    return make_problem()


@pytest.fixture
def make():
    return make_problem


@pytest.fixture
def gram(tmp_path, problem):
    """An empty store for the problem."""
    return GramStore.create_or_open(LocalStore(tmp_path), problem.identity)


@pytest.fixture
def full(gram, problem):
    """A complete one."""
    return problem.fill(gram)
