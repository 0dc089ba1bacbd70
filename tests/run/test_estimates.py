"""Estimates of errors through the pipeline: float32 tiles of real images against the answer in float64."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ntkpipe.config import (
    ClusterConfig,
    DataConfig,
    GridConfig,
    KernelConfig,
    PredictConfig,
    RunConfig,
    SolverConfig,
    StoreConfig,
)
from ntkpipe.events.event import silent
from ntkpipe.predictions.read import read_predictions
from ntkpipe.predictions.schema import Predictions
from ntkpipe.run.opened import open_run
from ntkpipe.run.run_dir import RunDir
from ntkpipe.run.stages import RunAtWork
from ntkpipe.tasks.serial import SerialExecutor

TIMES = (1e2, 1e4, math.inf)
N, P = 300, 150


class Runs:
    """Runs on the same images, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.exact = self.run("exact", "float64", kind="eigh")

    def config(self, name: str, dtype: str, predict: dict[str, Any] | None = None, **solver: Any) -> RunConfig:
        # A basis that another run has finished is not restarted.
        store = self.folder / ("other" if "basis_gib" in solver else "store")
        times = TIMES if solver["kind"] in ("krylov", "eigh") else (math.inf,)
        return RunConfig(
            data=DataConfig(kind="digits", train_size=N, test_size=P),
            kernel=KernelConfig(kind="fcn", depth=3, dtype=dtype),
            grid=GridConfig(edge=128),
            store=StoreConfig(url=str(store)),
            solver=SolverConfig(**solver),
            predict=PredictConfig(times=times, ridges=(0.0, 1e-3), **(predict or {})),
            cluster=ClusterConfig(kind="serial"),
            report=False,
            run_dir=str(self.folder / name),
        )

    def at_work(self, config: RunConfig) -> RunAtWork:
        return RunAtWork(RunDir.create(config), lambda: SerialExecutor(1), silent)

    def run(
        self, name: str, dtype: str = "float32", predict: dict[str, Any] | None = None, **solver: Any
    ) -> Predictions:
        job = self.at_work(self.config(name, dtype, predict, **solver))
        with job.at_work():
            job.all()
        return self.read(name)

    def read(self, name: str) -> Predictions:
        return read_predictions(self.folder / name / "predictions.zarr")

    def errors(self, found: Predictions) -> np.ndarray:
        """(K, T, R, p, c)."""
        picked = np.isin(self.exact.times, found.times)
        return np.abs(found.mean - self.exact.mean[:, picked])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize(
    "solver",
    [
        {"kind": "eigh"},
        {"kind": "krylov"},
        {"kind": "krylov", "products": "float32"},
        {"kind": "krylov", "basis_gib": 9 * 12 * 8 * N / 2**30, "max_steps": 300},
        {"kind": "cholesky", "leave_one_out": False},
        {"kind": "cg"},
    ],
    ids=["eigh", "krylov", "float32 products", "restarted", "cholesky", "cg"],
)
def test_999_of_1000_errors_are_within_their_estimates_which_lie_near(runs: Runs, solver: dict[str, Any]) -> None:
    found = runs.run("-".join(map(str, solver.values())), **solver)
    error, estimate = runs.errors(found), found.error_estimate
    assert estimate is not None
    assert ("basis_gib" in solver) == any(s.get("restarted", False) for s in found.attributes["solver"].values())
    assert (estimate <= found.error_bound).all()
    for at in np.ndindex(error.shape[:3]):
        assert np.mean(error[at] > estimate[at]) <= 2e-3  # 1,500 predictions: at most three
        assert np.median(estimate[at]) < 30 * np.median(error[at])  # 7.4 were sigma known
    assert np.mean(error > estimate) < 1e-3
    assert 10 * np.median(estimate) < np.median(found.error_bound)


def test_a_setting_leaves_them_out_and_changes_nothing_else(runs: Runs) -> None:
    plain = runs.run("plain", kind="krylov", predict={"error_estimate": "false"})
    assert plain.error_estimate is None
    with_them = runs.run("with", kind="krylov", predict={"error_estimate": "true"})
    for name, (array, _) in plain.arrays().items():
        np.testing.assert_array_equal(array, with_them.arrays()[name][0])


def test_a_resumed_run_makes_the_same_and_new_points_have_theirs(runs: Runs) -> None:
    config = runs.config("resumed", "float32", kind="krylov")
    for stage in ("gram", "solve", "predict"):
        job = runs.at_work(config)
        with job.at_work():
            getattr(job, stage)()
    found, at_once = runs.read("resumed"), runs.run("at_once", kind="krylov")
    assert found.error_estimate is not None
    np.testing.assert_array_equal(found.error_estimate, at_once.error_estimate)
    points = open_run(runs.folder / "resumed").predict(np.random.default_rng(0).random((3, 8, 8, 1)))
    assert points.error_estimate is not None
    assert np.isfinite(points.error_estimate).all()
    assert (points.error_estimate > 0).all()


def test_the_space_of_random_vectors_stops_where_it_does_in_a_solve_that_was_killed(runs: Runs) -> None:
    """Steps of another run on the same basis, which went further, are left aside."""
    runs.run("near", kind="krylov")
    receipts = [RunDir.open(runs.folder / name).receipt("solve") for name in ("near", "again")[:1]]
    again = runs.at_work(runs.config("again", "float32", kind="krylov"))
    with again.at_work():
        again.gram()
        again.solve()
    receipts.append(again.run.receipt("solve"))
    passes = [{k: one["estimate_passes"] for k, one in r["kernels"].items()} for r in receipts if r is not None]
    assert passes[0] == passes[1]
