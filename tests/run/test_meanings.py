from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from ntkpipe.config import (
    COMBINED,
    GIVEN_KERNELS,
    KERNELS,
    DataConfig,
    KernelConfig,
    PredictConfig,
    RunConfig,
    SolverConfig,
)
from ntkpipe.errors import ConfigError
from ntkpipe.run.meanings import MEANINGS, check_meanings, settings

FILES = {
    "npz": "data.npz",
    "cifar10": "cifar-10-python.tar.gz",
    "cifar100": "cifar-100-python.tar.gz",
    "image_folder": "set.zip",
}


def test_every_setting_says_what_it_needs() -> None:
    assert sorted(MEANINGS) == sorted(settings())


def test_needs_name_settings_that_there_are() -> None:
    known = set(settings())
    for name, needs in MEANINGS.items():
        for need in needs:
            assert {need.setting, *need.where} <= known, name
            assert need.setting != name
            assert need.values, f"{name} has no meaning anywhere"


@pytest.mark.parametrize("kind", KERNELS)
def test_defaults_that_were_typed_are_refused_where_a_kernel_does_not_read_them(kind: str) -> None:
    given: dict[str, Any] = (
        {"path": "x.json"}
        if kind in ("spec", "empirical")
        else {"train": "a", "test": "b"}
        if kind in GIVEN_KERNELS
        else {"parts": ({"kind": "fcn"},)}
        if kind in COMBINED
        else {}
    )
    data = DataConfig(kind="labels", path="y.npz") if kind in GIVEN_KERNELS else DataConfig()
    config = RunConfig(kernel=KernelConfig(kind=kind, **given), data=data)
    takes = {f.name for f in dataclasses.fields(KernelConfig) if _is_read(config, f"kernel.{f.name}")}
    assert "kind" in takes
    expected = {
        "fcn": {
            "depth",
            "readout_depths",
            "width",
            "w_std",
            "b_std",
            "activation",
            "activation_args",
            "parameterization",
        },
        "rbf": {"length_scale"},
        "matern": {"nu", "length_scale"},
        "linear": {"w_std", "b_std"},
        "spec": {"path"},
        "empirical": {"path", "weights", "seed", "initialiser", "outputs"},
        "features": {"train", "test", "scale"},
    }
    if kind in expected:
        # What is None by default is left out by `null`, with any kernel.
        unset = {f.name for f in dataclasses.fields(KernelConfig) if getattr(config.kernel, f.name) is None}
        assert takes - unset == (expected[kind] | {"kind", "dtype"}) - unset
    assert ("depth" in takes) == (kind in ("fcn", "cnn_vec", "cnn_gap", "cntk", "wide_resnet", "attention"))


def _is_read(config: RunConfig, setting: str) -> bool:
    try:
        check_meanings(config, [setting])
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize(("kind", "file"), FILES.items())
def test_a_path_says_which_data_it_is_for(kind: str, file: str) -> None:
    config = RunConfig(data=DataConfig(path=f"somewhere/{file}"))
    text = f"data.path=somewhere/{file} has no meaning for data=digits, which is the default: set data={kind} as well"
    with pytest.raises(ConfigError, match=re.escape(text)):
        check_meanings(config, ["data.path"])
    check_meanings(RunConfig(data=DataConfig(kind=kind, path=file)), ["data.path"])


def test_a_folder_says_by_its_content_which_data_it_is_for(tmp_path) -> None:
    (tmp_path / "photos" / "train").mkdir(parents=True)
    (tmp_path / "idx").mkdir()
    (tmp_path / "idx" / "train-images-idx3-ubyte.gz").touch()
    for folder, kind in (("photos", "image_folder"), ("idx", "mnist")):
        with pytest.raises(ConfigError, match=f"set data={kind} as well"):
            check_meanings(RunConfig(data=DataConfig(path=str(tmp_path / folder))), ["data.path", "data.kind"])


@pytest.mark.parametrize(
    ("config", "setting", "text"),
    [
        (RunConfig(), "predict.momentum", "set predict.dynamics=momentum"),
        (RunConfig(), "predict.held_out", "set predict.selection=held_out"),
        (RunConfig(), "data.noise", "set data=synthetic"),
        (RunConfig(), "solver.precision", "set solver=cholesky"),
        (RunConfig(), "solver.preconditioner", "set solver=cg"),
        (RunConfig(), "cluster.speculate", "set cluster=ray"),
        (RunConfig(), "cluster.launch.nodes", "set cluster/launch=slurm, kuberay or cloud"),
        (
            RunConfig(data=DataConfig(kind="mnist", path="x", source="http://a")),
            "data.source",
            "set data.download=true",
        ),
        (RunConfig(kernel=KernelConfig(kind="cntk")), "kernel.pool_radius", "set kernel.pool=lap"),
    ],
)
def test_the_choice_that_was_meant_is_named(config: RunConfig, setting: str, text: str) -> None:
    check_meanings(config, [])  # a stored configuration was typed by nobody
    with pytest.raises(
        ConfigError, match=f"^{re.escape(setting)}=.*{re.escape(text)}.*or leave {re.escape(setting)} out"
    ):
        check_meanings(config, [setting])


def test_cg_reads_the_tolerance_for_variances_and_factor_edge_for_its_factor() -> None:
    def config(preconditioner: str = "cholesky", **predict) -> RunConfig:
        solver = SolverConfig(kind="cg", preconditioner=preconditioner, factor_edge=64)
        return RunConfig(solver=solver, predict=PredictConfig(times=(float("inf"),), ridges=(0.0, 1.0), **predict))

    assert not _is_read(config(), "solver.tolerance")
    assert _is_read(config(covariance="diagonal"), "solver.tolerance")
    assert _is_read(config(selection="loo"), "solver.tolerance")
    assert not _is_read(config(), "solver.factor_edge")
    assert _is_read(config("float32_factor"), "solver.factor_edge")


def test_null_leaves_a_setting_out() -> None:
    check_meanings(RunConfig(), ["data.path", "solver.rank", "cluster.max_workers"])


def test_a_value_may_be_assumed() -> None:
    assert not _is_read(RunConfig(), "cluster.speculate")
    check_meanings(RunConfig(), ["cluster.speculate"], assuming={"cluster.kind": "ray"})
