"""Variances and covariances with every solver: against eigenvectors, within their bounds, killed, and in little memory."""

from __future__ import annotations

import json

import numpy as np
import pytest
from lab import Lab

from ntkpipe.kernels.dominance import dominance
from ntkpipe.linalg.assemble import read_rows
from ntkpipe.linalg.checkpoint import StoreCheckpoint
from ntkpipe.predictions.schema import Predictions
from ntkpipe.run import stages
from ntkpipe.tiles.grid import TileGrid
from ntkpipe.tiles.matrix import InMemoryTiles

DATA = ("cluster=serial", "data=digits", "data.train_size=64", "data.test_size=12", "grid.edge=32")
ALL = ("predict.kernels=[ntk,nngp,ntkgp]", "predict.ridges=[0,1e-3]")
EXACT = "kernel.dtype=float64"
TIMES, LAST = "predict.times=[1,100,1e4,inf]", "predict.times=[inf]"
BATCHES = "predict.covariance_batch=5"  # 5, 5 and 2


@pytest.fixture(scope="module", autouse=True)
def no_figures():
    """They take longer than all the rest, and have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "write_report", lambda run, *_: run.path / "report")
        yield


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), *DATA)


@pytest.fixture(scope="module", params=["none", "hflip"])
def dense(lab, request) -> tuple[str, Predictions]:
    flips = f"augment={request.param}"
    words = (*ALL, EXACT, TIMES, flips, "solver=eigh", "predict.covariance=full")
    return flips, lab.run(f"dense-{request.param}", *words)


def within(found: Predictions, wanted: Predictions, times: slice = slice(None)) -> np.ndarray:
    """The errors of the variances, which must be within their bounds."""
    assert found.variance is not None
    assert found.variance_bound is not None
    assert wanted.variance is not None
    assert wanted.variance_bound is not None
    error = np.abs(found.variance - wanted.variance[:, times])
    assert (error <= found.variance_bound + wanted.variance_bound[:, times]).all()
    assert (found.variance >= 0).all()
    return error


def test_batches_of_eigenvectors_make_no_difference(lab, dense):
    flips, wanted = dense
    found = lab.run(
        f"batches-{flips[8:]}", *ALL, EXACT, TIMES, flips, "solver=eigh", "predict.covariance=full", BATCHES
    )
    assert within(found, wanted).max() < 1e-12
    np.testing.assert_allclose(found.covariance, wanted.covariance, atol=1e-12)
    assert found.variance_bound.max() < 1e-9


@pytest.mark.parametrize(
    ("solver", "times", "within_tolerance"),
    [("krylov", TIMES, 1e-4), ("cg", LAST, 1e-3), ("cholesky", LAST, 1e-11)],
)
def test_covariances_are_those_of_eigenvectors(lab, dense, solver, times, within_tolerance):
    flips, wanted = dense
    cut = slice(None) if times == TIMES else slice(3, 4)
    words = (*ALL, EXACT, times, flips, f"solver={solver}", BATCHES)
    found = lab.run(f"{solver}-{flips[8:]}-full", *words, "predict.covariance=full")
    assert within(found, wanted, cut).max() <= within_tolerance
    assert found.covariance is not None
    # Of a matrix the error of no entry is bounded here, but the solver was told to stay below its tolerance.
    assert np.abs(found.covariance - wanted.covariance[:, cut]).max() <= within_tolerance
    for matrix in found.covariance.reshape(-1, *found.covariance.shape[-2:]):
        np.testing.assert_array_equal(matrix, matrix.T)
        assert np.linalg.eigvalsh(matrix)[0] > 0


@pytest.mark.parametrize("solver", ["krylov", "cg", "cholesky", "eigh"])
def test_float32_tiles_are_within_the_bound(lab, dense, solver):
    flips, wanted = dense
    times = TIMES if solver in ("krylov", "eigh") else LAST
    cut = slice(None) if times == TIMES else slice(3, 4)
    words = (*ALL, times, flips, f"solver={solver}", "predict.covariance=diagonal")
    found = lab.run(f"{solver}-{flips[8:]}-32", *words)
    assert within(found, wanted, cut).max() > 1e-9  # storage alone
    assert np.isfinite(found.variance_bound).all()
    if solver == "krylov":
        rounded = lab.run(f"{solver}-{flips[8:]}-products", *words, "solver.products=float32")
        within(rounded, wanted, cut)


@pytest.mark.parametrize("dynamics", ["gradient_descent", "momentum"])
def test_other_dynamics(lab, dynamics):
    words = (*ALL, EXACT, f"predict.dynamics={dynamics}", "predict.times=[3,300]", "predict.covariance=diagonal")
    wanted = lab.run(f"{dynamics}-dense", *words, "solver=eigh")
    assert within(lab.run(f"{dynamics}-krylov", *words, BATCHES), wanted).max() <= 1e-4


def test_batches_are_chosen_from_little_memory(lab):
    words = (EXACT, LAST, "predict.kernels=[nngp]", "predict.ridges=[1e-2]", "predict.covariance=diagonal")
    wanted = lab.run("much", *words, "solver=eigh")
    within(lab.run("little", *words, "solver=krylov", "cluster.memory_gib=0.7"), wanted)
    layout = list((lab.path / "store" / "uncertainty").glob("*/layout.json"))
    assert any(json.loads(path.read_bytes())["columns"] == 1 for path in layout)


class _Killed(BaseException):
    pass


@pytest.mark.parametrize(("covariance", "at"), [("diagonal", 1), ("diagonal", 2), ("full", 2), ("full", 4)])
def test_killed_it_goes_on_with_the_next_batch(lab, monkeypatch, covariance, at):
    words = (
        EXACT,
        TIMES,
        "predict.kernels=[ntk]",
        "predict.ridges=[1e-3]",
        f"predict.covariance={covariance}",
        BATCHES,
    )
    run = f"store.url=killed-{covariance}-{at}"
    wanted = lab.run(f"calm-{covariance}-{at}", *words, f"store.url=calm-{covariance}-{at}")
    kept, made = StoreCheckpoint.append, []

    def append(self, start, step, arrays):
        if "variance" in arrays:
            made.append(self._prefix)
            if len(made) == at + 1:
                raise _Killed
        kept(self, start, step, arrays)

    monkeypatch.setattr(StoreCheckpoint, "append", append)
    with pytest.raises(_Killed):
        lab.run(f"hurt-{covariance}-{at}", *words, run)
    before = set(made[:-1])
    assert len(before) == at
    found = lab.run(f"hurt-{covariance}-{at}", *words, run)
    assert not before & set(made[at + 1 :])  # nothing is made twice
    np.testing.assert_array_equal(found.variance, wanted.variance)
    np.testing.assert_array_equal(found.variance_bound, wanted.variance_bound)
    if covariance == "full":
        np.testing.assert_array_equal(found.covariance, wanted.covariance)


def test_a_later_run_finds_batches_and_a_damaged_one_is_made_again(lab, monkeypatch):
    words = (
        EXACT,
        LAST,
        "predict.kernels=[nngp]",
        "predict.ridges=[1e-2]",
        "predict.covariance=diagonal",
        "store.url=kept",
    )
    wanted = lab.run("first", *words, BATCHES)
    objects = sorted((lab.path / "kept" / "uncertainty").rglob("*.npz"))
    assert len(objects) == 3
    data = bytearray(objects[1].read_bytes())
    data[len(data) // 2] ^= 1
    objects[1].write_bytes(data)
    kept, made = StoreCheckpoint.append, []

    def append(self, start, step, arrays):
        made.extend([self._prefix] if "variance" in arrays else [])
        kept(self, start, step, arrays)

    monkeypatch.setattr(StoreCheckpoint, "append", append)
    found = lab.run("second", *words)  # the size of the batches is that of the first run
    assert len(made) == 1
    np.testing.assert_array_equal(found.variance, wanted.variance)


def test_too_few_steps_are_told(lab, capsys):
    words = ("predict.covariance=diagonal", "solver.max_steps=1", "predict.covariance_batch=1")
    shared = (LAST, "predict.ridges=[1e-3]", "predict.kernels=[ntk]")
    # Means have what an earlier run has left.
    lab.run("enough", *shared)
    assert lab.command("run", *DATA, "run_dir=few", *shared, *words) == 4
    assert "solver.max_steps" in capsys.readouterr().err


def test_a_variance_below_its_rounding_is_told(lab):
    words = (
        "predict.kernels=[ntkgp]",
        "predict.covariance=diagonal",
        "solver=eigh",
        "kernel=linear",
        "kernel.b_std=null",
    )
    found = lab.run("lost", *words, LAST)
    assert any("variance_bound" in text for text in found.attributes["warnings"])


def test_rows_are_read_from_the_tiles_that_hold_them():
    array = np.arange(70.0).reshape(7, 10)
    matrix = InMemoryTiles(array, TileGrid(7, 10, 3))
    np.testing.assert_array_equal(read_rows(matrix, np.array([6, 0, 2])), array[[6, 0, 2]])
    with pytest.raises(ValueError, match="symmetric"):
        read_rows(InMemoryTiles(array[:, :7], TileGrid(7, 7, 3, symmetric=True)), np.array([0]))


def test_dominance_is_read_off_the_last_layers():
    dense = {"op": "dense", "features": 9, "w_std": 2.0, "b_std": 3.0, "parameterization": "ntk"}
    assert dominance([{"op": "flatten"}, dense], 10.0, 0.1) == 1.0
    assert dominance([{**dense, "parameterization": "standard"}, {"op": "global_avg_pool"}], 10.0, 0.1) == 9.0
    assert dominance([dense, {"op": "relu"}], 10.0, 0.1) == pytest.approx(100.0)
    assert dominance([dense, {"op": "relu"}], 10.0, 0.0) == np.inf
