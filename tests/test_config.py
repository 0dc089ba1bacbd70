from __future__ import annotations

import math
import os

import pytest

from ntkpipe.config import ClusterConfig, PredictConfig, RunConfig, SolverConfig, from_dict, to_dict
from ntkpipe.errors import ConfigError


def test_workers_fill_the_cores_with_their_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert ClusterConfig().worker_count() == 8
    assert ClusterConfig(threads_per_worker=3).worker_count() == 2
    assert ClusterConfig(threads_per_worker=16).worker_count() == 1
    assert ClusterConfig(workers=5, threads_per_worker=2).worker_count() == 5
    assert ClusterConfig(kind="serial").worker_count() == 1


def test_a_configuration_survives_json() -> None:
    config = RunConfig(predict=PredictConfig(times=(1.0, math.inf), ridges=(0.0, 1e-4)), run_dir="runs/x")
    plain = to_dict(config)
    assert plain["predict"]["times"] == [1.0, "inf"]
    assert from_dict(RunConfig, plain) == config


def test_unknown_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="tolerence"):
        from_dict(SolverConfig, {"tolerence": 1e-3})


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: PredictConfig(times=(-1.0,)), "predict.times"),
        (lambda: PredictConfig(times=(math.nan,)), "predict.times"),
        (lambda: PredictConfig(ridges=(-1e-9,)), "predict.ridges"),
        (lambda: PredictConfig(ridges=(math.inf,)), "finite"),
        (lambda: PredictConfig(kernels=()), "predict.kernels"),
        (lambda: PredictConfig(dynamics="gradient_descent", times=(1.5,)), "whole steps"),
        (lambda: PredictConfig(momentum=1.0), "predict.momentum"),
        (lambda: RunConfig(solver=SolverConfig(kind="cholesky")), "t = inf only"),
        (lambda: RunConfig(solver=SolverConfig(kind="cg")), "t = inf only"),
        (lambda: SolverConfig(kind="cg", preconditioner="float32_factor", rank=9), "solver.rank"),
        (lambda: PredictConfig(covariance="some"), "predict.covariance"),
        (lambda: PredictConfig(covariance_batch=0), "predict.covariance_batch"),
        (lambda: PredictConfig(held_out=0.0), "predict.held_out"),
        (lambda: PredictConfig(held_out=10.5), "whole number"),
        (lambda: RunConfig(predict=PredictConfig(selection="loo")), "one ridge to choose from"),
        (lambda: RunConfig(predict=PredictConfig(selection="held_out", times=(1.0,))), "one time to choose from"),
        (lambda: RunConfig(predict=PredictConfig(selection="loo", times=(1.0,), ridges=(0.0, 1.0))), "t = inf only"),
    ],
)
def test_impossible_settings_are_refused_on_construction(make, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make()
