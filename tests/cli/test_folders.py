"""Folders of runs and of the jobs of sweeps: own ones, found again, plain to type."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest

from ntkpipe.cli.folders import job_folder, own_folder, sweep_folder
from ntkpipe.cli.stages import FUNCTIONS
from ntkpipe.config import ClusterConfig, DataConfig, PredictConfig, RunConfig

WORDS = ("cluster=serial", "data=synthetic", "data.n_train=20", "data.n_test=5")


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["kernel.depth=3"], "depth=3"),
        (["kernel.depth=3", "predict.times=[1,inf]"], "depth=3-times=1_inf"),
        (["predict.ridges=[1e-3, 0.1]"], "ridges=1e-3_0.1"),
        (["kernel.path=a", "data.path=b"], "kernel.path=a-data.path=b"),
        (["kernel=fcn"], "kernel=fcn"),
        (["++kernel.activation_args.alpha=0.1"], "alpha=0.1"),
        ([], "job"),
    ],
)
def test_a_job_is_named_after_what_varies(overrides, name):
    assert job_folder(overrides) == name


def test_no_two_jobs_share_a_folder_and_all_can_be_typed():
    values = [
        "a/b",
        "a-b",
        "a%2Fb",
        "a b",
        "a:b",
        "'a,b'",
        "größe",
        "x" * 200,
        "x" * 199 + "/",
        "x" * 199 + "-",
        "",
        "-1",
        "1",
    ]
    names = {job_folder([f"data.path={value}"]) for value in values}
    assert len(names) == len(values)
    assert all(re.fullmatch(r"[A-Za-z0-9._+=-]{1,120}", name) for name in names)


def test_a_run_has_a_folder_of_its_own():
    config = RunConfig()
    name = own_folder(config, None)
    assert re.fullmatch(r"\./runs/digits-fcn-[0-9a-f]{8}", name)
    assert own_folder(config, "digits_fcn").startswith("./runs/digits_fcn-fcn-")
    same = dataclasses.replace(config, cluster=ClusterConfig(workers=3), report=False, run_dir="x")
    assert own_folder(same, None) == name
    for other in (
        dataclasses.replace(config, predict=PredictConfig(ridges=(1.0,))),
        dataclasses.replace(config, data=DataConfig(train_size=10)),
        dataclasses.replace(config, augment="hflip"),
    ):
        assert own_folder(other, None) != name
    files = [DataConfig(kind="npz", path=path) for path in ("sets/my data.npz", os.path.abspath("sets/my data.npz"))]
    first, second = (own_folder(dataclasses.replace(config, data=data), None) for data in files)
    assert first == second
    assert first.startswith("./runs/my-data-fcn-")


def test_the_same_settings_find_the_folder_again(command):
    code, out, err = command("gram", *WORDS)
    assert code == 0, err
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("synthetic-fcn-")
    assert f"runs/{folder.name}" in out + err
    code, out, err = command("gram", *WORDS)
    assert (code, "all 2 tiles are stored" in err, len(list(Path("runs").iterdir()))) == (0, True, 1), err
    assert command("gram", *WORDS, "predict.ridges=[0.1]")[0] == 0
    assert len(list(Path("runs").iterdir())) == 2


def test_jobs_of_a_sweep(command, monkeypatch):
    found = []
    monkeypatch.setitem(FUNCTIONS, "gram", lambda config, session: found.append(config.run_dir))
    code, _, err = command("gram", "--multirun", "data=npz", "data.path=sets/a.npz,sets_a.npz", "run_dir=sweep")
    assert code == 0, err
    assert found == [f"sweep/{job_folder([f'data.path={path}'])}" for path in ("sets/a.npz", "sets_a.npz")]
    found.clear()
    for _ in range(2):
        assert command("gram", "--multirun", *WORDS, "kernel.depth=1,2")[0] == 0
    assert found[:2] == found[2:]
    assert [Path(name).name for name in found[:2]] == ["depth=1", "depth=2"]
    assert Path(found[0]).parent == Path(found[1]).parent == Path(sweep_folder([*WORDS, "kernel.depth=1,2"]))
