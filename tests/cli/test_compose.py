from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from ntkpipe.cli.compose import config_folder
from ntkpipe.cli.schema import register_schema, to_run_config
from ntkpipe.config import RunConfig, from_dict, to_dict

ROOT = Path(__file__).resolve().parents[2]
CHOICES = sorted((p.parent.name, p.stem) for p in config_folder().glob("*/*.yaml"))
NEEDS_PATH = ("npz", "table", "cifar10", "cifar100", "image_folder", "mnist")


def composed(*overrides: str) -> RunConfig:
    register_schema(blank=True)
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return to_run_config(compose("config", list(overrides)))


@pytest.mark.parametrize(("group", "name"), CHOICES, ids=lambda v: v)
def test_every_choice_composes(group, name):
    extra = []
    if name in NEEDS_PATH or "override /data: cifar10" in (config_folder() / group / f"{name}.yaml").read_text():
        extra = ["data.path=somewhere"]
    if name == "table":
        extra += ["data.target=y"]
    if (group, name) in (("kernel", "spec"), ("kernel", "empirical")):
        extra = ["kernel.path=layers.json"]
    if name in ("sum", "product"):
        extra = ["kernel.parts=[fcn,{kind:rbf,length_scale:2}]"]
    if name == "features":
        extra = ["data=labels", "data.path=y.npz", "kernel.train=a.npy", "kernel.test=b.npy"]
    if name in ("labels", "gram"):
        extra = ["data=labels", "data.path=y.npz", "kernel=gram", "kernel.train=a.npy", "kernel.test=b.npy"]
    if name == "flow":
        extra = ["predict.times=[10]"]
    if name in ("cholesky", "cg"):
        extra = ["predict.times=[inf]"]
    config = composed(f"{group}={name}", *extra)
    if group in ("data", "kernel", "solver", "cluster"):
        assert getattr(config, group).kind == name
    assert from_dict(RunConfig, to_dict(config)) == config


def test_yaml_defaults_are_those_of_the_dataclasses():
    assert composed() == RunConfig()


def test_values_reach_the_dataclasses():
    config = composed(
        "predict.times=[1,1e3,inf]",
        "predict.ridges=[0,1e-4]",
        "predict.kernels=[ntk]",
        "kernel.b_std=null",
        "data.shape=[2,3,1]",
        "++kernel.activation_args={alpha:0.1}",
        "grid.edge=7",
    )
    assert config.predict.times == (1.0, 1000.0, math.inf)
    assert config.predict.ridges == (0.0, 1e-4)
    assert config.kernel.b_std is None
    assert config.kernel.activation_args == {"alpha": 0.1}
    assert (config.data.shape, config.grid.edge, config.predict.kernels) == ((2, 3, 1), 7, ("ntk",))


def test_experiments_are_overlays():
    config = composed("experiment=cifar10_fcn", "data.path=x", "predict.times=[inf]")
    assert (config.data.kind, config.kernel.kind, config.predict.times) == ("cifar10", "fcn", (math.inf,))


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("flag", [("--cfg", "job"), ("--resolve", "--cfg", "job")], ids="-".join)
def test_flags_anywhere(command, flag, place):
    words = ["kernel.depth=5", "cluster=serial"]
    code, out, _ = command("run", *words[:place], *flag, *words[place:])
    assert code == 0
    assert "depth: 5" in out


def test_parameters_of_an_activation_are_set_like_any_other(command):
    for word in ("kernel.activation_args={alpha:0.3}", "kernel.activation_args.alpha=0.3"):
        code, out, _ = command("run", "kernel.activation=leaky_relu", word, "--cfg", "job")
        assert code == 0
        assert "alpha: 0.3" in out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("kernel.depht=3", "Did you mean kernel.depth="),
        ("kernal=fcn", "Did you mean kernel=fcn?"),
        ("+kernel.depht=3", "Did you mean kernel.depth=3?"),
        ("+colour=red", "there is no setting 'colour'; the groups and settings are data, kernel"),
        ("depth=3", "Did you mean kernel.depth=3?"),
        ("ridge=1", "Did you mean predict.ridges=1?"),
        ("tolerence=1", "Did you mean solver.tolerance=1?"),
        ("data.task=regression", "Did you mean data.labels=regression?"),
        ("sigma_w=1.5", "Did you mean kernel.w_std?"),
        ("predict.variances=true", "Did you mean predict.covariance?"),
        ("data.seed=3", "Did you mean data.subset_seed?"),
        ("gpus=2", "(ntkpipe help cluster.gpus_per_task explains it)"),
        ("solver.method=krylov", "Did you mean solver.kind=krylov?"),
        ("profil=1", "there is no setting 'profil'"),
        ("solver=kyrlov", "Did you mean solver=krylov?"),
        ("kernel=fcm", "Did you mean kernel=fcn?"),
        ("kernel.activation=rellu", "Did you mean relu?"),
        ("predict.covariance=diagnal", "Did you mean predict.covariance=diagonal?"),
        ("kernel.w_std=sqrt(-1)", "kernel.w_std=sqrt(-1) cannot be read: it must be a number"),
        ("kernel.w_std=1/0", "kernel.w_std=1/0 must be a number"),
        ("kernel.w_std=sqrt(2", "a bracket is not closed"),
        ("predict.ridges=0,1e-3", "write a list as predict.ridges=[0,1e-3]"),
        ("data.path='abc", "a quotation mark is not closed"),
        ("=3", "write NAME=VALUE"),
        ("~kernel.depht", "Did you mean kernel.depth="),
        ("data=cifer10", "cifar100"),
        ("experiment=digit", "digits_fcn"),
        ("data=null", "data=NAME, one of cifar10"),
        ("kernel=3", "kernel.NAME=VALUE"),
        ("solver=[1,2]", "solver=NAME, one of auto, cg"),
        ("cluster.launch=slurm", "cluster/launch=NAME, one of cloud"),
        ("data.shape={a:1}", "data.shape={a:1} must be a list"),
        ("cluster.resources=[1]", "error: cluster.resources=[1] must be a mapping"),
        ("experiment=3", "experiment=NAME, one of chizat2018_lazy, cifar10_fcn"),
        ("kernel.readout_depths=[-1]", "kernel.readout_depths=-1 must be at least 0"),
        ("kernel.b_std=wide", "kernel.b_std=wide must be a number, or null for none"),
        ("data.train_size=1.5", "data.train_size=1.5 must be a whole number"),
        ("kernel.depth=deep", "kernel.depth"),
        ("kernel.depth=1,2", "--multirun"),
        ("kernel.depth=-1", "kernel.depth=-1"),
        ("kernel.dtype=float16", "float32, float64"),
        ("kernel.w_std=0", "kernel.w_std"),
        ("predict.times=[a]", "predict.times"),
        ("predict.times=[1,inf", "[1,inf"),
        ("predict.times=[-1]", "at least 0"),
        ("predict.times=[nan]", "must be a list of numbers"),
        ("predict.times=[]", "at least one value"),
        ("predict.times=[1,1]", "each once"),
        ("predict.ridges=[-1e-9]", "at least 0"),
        ("predict.ridges=[inf]", "finite"),
        ("predict.kernels=[ntkk]", "ntk, nngp, ntkgp"),
        ("predict.momentum=1", "below 1"),
        ("predict.dynamics=gradient_descent predict.times=[0.5]", "whole steps"),
        ("predict.covariance=some", "none, diagonal, full"),
        ("predict.selection=loo", "predict.ridges=[0,1e-5,"),
        ("solver=cholesky predict.times=[1]", "t = inf only"),
        ("solver=cg predict.times=[1]", "solver=cg answers t = inf only"),
        ("solver.preconditioner=jacobi", "nystrom, cholesky, float32_factor, none"),
        ("solver.preconditioner=none solver.rank=5", "solver.rank is for"),
        ("solver.rank=0", "at least 1"),
        ("solver.residual=0", "above 0"),
        ("solver.tolerance=0", "above 0"),
        ("store.dtype=float64", "kernel.dtype=float64"),
        ("data=npz", "data.path"),
        ("data.train_size=0", "at least 1"),
        ("data.shape=[1,2]", "height, width, channels"),
        ("cluster.workers=0", "at least 1"),
        ("cluster.memory_gib=0", "above 0"),
        ("grid.edge=0", "at least 1"),
        ("kernel=spec", "kernel.path"),
        ("run_dir=", "run_dir"),
        ("run_dir=${nothing}", "nothing"),
        ("nonsense", "nonsense"),
    ],
)
def test_bad_configuration(command, tmp_path, words, text):
    code, _, err = command("run", "cluster.kind=serial", *words.split())
    assert code == 2
    assert text in err
    assert not any(word in err for word in ("Traceback", "hydra", "Hydra", "OmegaConf"))
    assert not list(tmp_path.iterdir())


def test_misspelt_flag(command):
    code, _, err = command("run", "--multirn")
    assert code == 2
    assert "no flag --multirn: did you mean --multirun?" in err


def test_arithmetic_in_a_setting(command):
    words = ("kernel.w_std=sqrt(2)", "kernel.b_std=2**-3", "predict.ridges=[sqrt(2)/2, 1e-3]", "data.train_size=10**2")
    code, out, err = command("run", *words, "--cfg", "job")
    assert code == 0, err
    for text in ("w_std: 1.4142135623730951", "b_std: 0.125", "- 0.7071067811865476", "train_size: 100"):
        assert text in out


def test_files_of_ones_own_are_choices_too(command, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "small.yaml").write_text("# @package _global_\nkernel:\n  depth: 7\n")
    code, out, err = command("run", "experiment=small", "--config-dir", "mine", "--cfg", "job")
    assert (code, "depth: 7" in out) == (0, True), err


def test_a_command_composes_once(command, monkeypatch):
    composed = []
    load = ConfigLoaderImpl.load_configuration

    def count(self, *args, **kwargs):
        composed.append(kwargs)
        return load(self, *args, **kwargs)

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", count)
    code, out, _ = command("describe", "kernel=fcn", "kernel.depth=2", "image_shape=[8,8,1]")
    assert code == 0
    assert "relu" in out.lower()
    assert len(composed) == 1


def test_a_setting_may_refer_to_a_default(command):
    code, out, err = command("describe", "kernel.b_std=${kernel.w_std}", "image_shape=[4]", "format=json")
    assert code == 0, err
    (dense, *_) = (layer for layer in json.loads(out) if layer["op"] == "dense")
    assert dense["b_std"] == dense["w_std"]
