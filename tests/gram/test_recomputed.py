"""Tiles that are computed when they are read are the tiles that a store would hold."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from ntkpipe.errors import DataError
from ntkpipe.gram import task
from ntkpipe.gram.recomputed import RecomputedTiles
from ntkpipe.gram.task import GramJob, Output, tile_task
from ntkpipe.gram.worker import Evaluation
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.spec import FORMULA_VERSION
from ntkpipe.kernels.zoo import cnn_gap, fcn
from ntkpipe.linalg.operator import tile_operator
from ntkpipe.storage.store import open_store
from ntkpipe.tasks.serial import SerialExecutor
from ntkpipe.tiles.identity import GramIdentity
from ntkpipe.tiles.layout import KERNELS
from ntkpipe.tiles.matrix import TileMatrix
from ntkpipe.tiles.store import GramStore

SPECS = {
    "flat": fcn(2, w_std=2**0.5, b_std=0.1),
    "spatial": cnn_gap(2, w_std=2**0.5, b_std=0.1),
}
N_TRAIN, N_TEST, EDGE = 40, 11, 16


class SeededImages:
    """Prepared images made from a seed; training row `spoilt`, if any, is NaN."""

    def __init__(self, spoilt: int = -1) -> None:
        self.spoilt = spoilt

    def __hash__(self) -> int:
        return hash(self.spoilt)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SeededImages) and other.spoilt == self.spoilt

    def read(self, block: str, start: int, stop: int) -> np.ndarray:
        n = N_TRAIN if block == "train" else N_TEST
        x = np.random.default_rng(n).standard_normal((n, 4, 4, 2))
        if block == "train" and self.spoilt >= 0:
            x[self.spoilt] = np.nan
        return x[start:stop]


def _both(folder: Path, name: str, symmetry="none", dtype="float32", images=None):
    spec, images = SPECS[name], images or SeededImages()
    identity = GramIdentity(
        data="0" * 64,
        architecture=Architecture.from_spec(spec).fingerprint,
        formula_version=str(FORMULA_VERSION),
        dtype=dtype,
        stored_dtype=dtype,
        edge=EDGE,
        n_train=N_TRAIN,
        n_test=N_TEST,
        symmetry=symmetry,
        spec=spec,
    )
    gram = GramStore.create_or_open(open_store(str(folder)), identity)

    def recomputed(kernel, block) -> RecomputedTiles:
        grid = gram.grid(block)
        return RecomputedTiles(images, Evaluation.of(spec, symmetry, dtype), kernel, block, grid, grid, dtype)

    return gram, GramJob((Output(gram, tuple(spec)),), images), recomputed


@pytest.mark.parametrize("name", list(SPECS))
@pytest.mark.parametrize("symmetry", ["none", "even", "odd"])
def test_equal_to_stored_tiles_in_every_bit(tmp_path, name, symmetry):
    gram, job, recomputed = _both(tmp_path, name, symmetry)
    for block in ("train", "test"):
        tile_task(job, block, [(t.i, t.j) for t in gram.grid(block)])
        for kernel in KERNELS:
            made = recomputed(kernel, block)
            assert isinstance(made, TileMatrix)
            for rows, cols in ((None, None), (N_TEST - 2, N_TEST - 2), (7, 7)):
                stored = gram.matrix(kernel, block, rows, cols)
                part = made if rows is None else made.leading(rows, cols)
                assert part.grid == stored.grid
                assert part.dtype == stored.dtype
                for t in stored.grid:
                    np.testing.assert_array_equal(part.read(t.i, t.j), stored.read(t.i, t.j))


def test_a_handle_is_small_and_kept_tiles_are_evaluated_once(tmp_path, monkeypatch):
    _, _, recomputed = _both(tmp_path, "flat")
    made = recomputed("ntk", "train")
    assert len(pickle.dumps(made)) < 2000
    read: list[tuple[int, int]] = []
    plain = RecomputedTiles.read

    def watched(self, i, j):
        read.append((i, j))
        return plain(self, i, j)

    monkeypatch.setattr(RecomputedTiles, "read", watched)
    x = np.random.default_rng(0).standard_normal((N_TRAIN, 3))
    for memory, evaluations in ((1 << 20, 1), (0, 3)):
        read.clear()
        with tile_operator(made, SerialExecutor(2), memory_bytes=memory) as operator:
            products = [operator.matmul(x) for _ in range(3)]
        assert len(read) == evaluations * len(made.grid)
        np.testing.assert_array_equal(products[0], products[2])


def test_a_row_of_tiles_prepares_its_images_once(tmp_path, monkeypatch):
    _, _, recomputed = _both(tmp_path, "flat")
    task.release_rows()
    prepared: list[int] = []
    plain = Evaluation.prepare

    def watched(self, images, *, flipped=False):
        prepared.append(len(images))
        return plain(self, images, flipped=flipped)

    monkeypatch.setattr(Evaluation, "prepare", watched)
    made = recomputed("nngp", "train")
    for j in range(3):
        made.read(2, j)
    assert prepared == [8, 16, 16]  # rows once, then the two columns that are not the rows themselves


def test_values_that_are_not_finite_name_the_images(tmp_path):
    _, _, recomputed = _both(tmp_path, "flat", images=SeededImages(spoilt=20))
    made = recomputed("ntk", "train")
    made.read(0, 0)
    with pytest.raises(DataError, match="Input rows 20"):
        made.read(1, 0)
    with pytest.raises(IndexError):
        made.read(0, 1)
