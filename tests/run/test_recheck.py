"""Checksums say that an object is what was written; these checks, that what was written is true."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from lab import QUICK, Lab

from ntkpipe.predictions.read import read_predictions
from ntkpipe.predictions.write import write_predictions
from ntkpipe.run.run_dir import RunDir
from ntkpipe.storage.checksum import crc32c
from ntkpipe.storage.store import open_store
from ntkpipe.tiles.store import GramStore

SOLVERS = {
    "krylov": ("solver=krylov", "predict.times=[10,inf]"),
    "eigh": ("solver=eigh", "predict.times=[10,inf]"),
    "cholesky": ("solver=cholesky", "predict.times=[inf]"),
    "cg": ("solver=cg", "predict.times=[inf]"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Finished runs on one store, by solver, to be copied."""
    lab = Lab(tmp_path_factory.mktemp("finished"), *QUICK, "predict.ridges=[0.0,1e-3]")
    for solver, words in SOLVERS.items():
        lab.run(solver, *words)
    return lab.path


@pytest.fixture
def copy(work, finished):
    shutil.copytree(finished, work.path, dirs_exist_ok=True)
    return work


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_good_run_passes(copy, solver):
    found = copy.ok("verify", f"run_dir={solver}", "tiles=100", "rows=10")
    assert found.out.count("recomputed: deviation") == 2 * 5  # 3 + 2 tiles of both kernels
    assert found.out.count("residual of 10 recomputed rows") == 2 * 2  # both kernels, both ridges
    assert found.out.count("10 test predictions") == 2
    assert "damaged" not in found.out


def test_the_choice_can_be_repeated_or_left_out(copy):
    words = ("verify", "run_dir=krylov", "tiles=1", "rows=5", "seed=3")
    assert copy.ok(*words).out == copy.ok(*words).out
    assert "again" not in copy.ok("verify", "run_dir=krylov", "tiles=0", "rows=0").out
    assert copy("verify", "run_dir=krylov", "rows=some").code == 2


def test_a_tile_of_other_values_under_a_right_checksum(copy):
    before = read_predictions(copy.path / "krylov" / "predictions.zarr").mean
    manifest = next((copy.path / "store" / "gram").glob("*"))
    gram = GramStore.open(open_store(str(copy.path / "store")), manifest.name)
    wrong = {kernel: gram.read_chunk(kernel, "train", 1, 0) * (1 + 1e-3) for kernel in ("nngp", "ntk")}
    gram.discard("train", 1, 0)
    gram.write_tile("train", 1, 0, {k: v[:32, :32] for k, v in wrong.items()})
    found = copy("verify", "run_dir=krylov", "tiles=100", "repair=false")
    assert found.code == 6
    assert "damaged  tile (1, 0) of ntk/train" in found.out
    assert "damaged  tile (0, 0)" not in found.out
    assert copy.ok("verify", "run_dir=krylov", "tiles=100").out.rstrip().endswith("repaired")
    np.testing.assert_allclose(read_predictions(copy.path / "krylov" / "predictions.zarr").mean, before, atol=1e-9)
    assert "damaged" not in copy.ok("verify", "run_dir=krylov", "tiles=100").out


def rewrite(folder: Path, change) -> None:
    """Change a run's predictions as a bug would: fingerprints and receipts agree with them."""
    target = folder / "predictions.zarr"
    changed = change(read_predictions(target))
    write_predictions(changed, target, overwrite=True)
    RunDir.open(folder).finish("predict", 0.0, fingerprint=changed.fingerprint(), max_error_bound=0.0)


def test_predictions_that_are_off(copy):
    import dataclasses

    before = read_predictions(copy.path / "krylov" / "predictions.zarr").mean
    rewrite(copy.path / "krylov", lambda p: dataclasses.replace(p, mean=p.mean + 2 * p.error_bound.max()))
    found = copy("verify", "run_dir=krylov", "rows=20", "repair=false")
    assert found.code == 6
    assert "damaged  ntk: 20 test predictions" in found.out
    copy.ok("verify", "run_dir=krylov", "rows=20")
    np.testing.assert_allclose(read_predictions(copy.path / "krylov" / "predictions.zarr").mean, before, atol=1e-9)


def test_a_solution_that_is_none(copy):
    saved = copy.path / "cholesky" / "solve" / "nngp.npz"
    with np.load(saved, allow_pickle=False) as archive:
        arrays = dict(archive)
    arrays["weights"] = arrays["weights"] * (1 + 1e-4)
    np.savez(saved, allow_pickle=False, **arrays)
    found = copy("verify", "run_dir=cholesky", "rows=20", "repair=false")
    assert found.code == 6
    assert "nngp.npz differs from what the stage solve wrote" in found.out
    # Under the right checksum: the residual tells.
    receipt = copy.path / "cholesky" / "stages" / "solve.json"
    body = json.loads(receipt.read_text())
    del body["sha256"]  # as earlier versions wrote it
    body["files"]["solve/nngp.npz"] = crc32c(saved.read_bytes())
    receipt.write_text(json.dumps(body))
    found = copy("verify", "run_dir=cholesky", "rows=20", "repair=false")
    assert found.code == 6
    assert "damaged  nngp, absolute ridge" in found.out
    assert "damaged  ntk" not in found.out
    assert copy.ok("verify", "run_dir=cholesky", "rows=20").out.rstrip().endswith("repaired")
