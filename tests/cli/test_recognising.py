"""A file without its kind: recognised, or asked for; never another data set."""

from __future__ import annotations

import numpy as np
import pytest

from ntkpipe.cli.recognising import with_data
from ntkpipe.errors import ConfigError


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("sets/a.npz", "npz"),
        ("a.csv", "table"),
        ("a.parquet", "table"),
        ("cifar-10-python.tar.gz", "cifar10"),
        ("cifar-100-binary", "cifar100"),
        ("cifar10.zip", "image_folder"),
        ("folders", "image_folder"),
        ("classes", "image_folder"),
        ("digits", "mnist"),
        ("a.npz,b.npz", "npz"),
        ("'my file.npz'", "npz"),
    ],
)
def test_kinds(tmp_path, monkeypatch, path, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folders" / "train").mkdir(parents=True)
    (tmp_path / "classes" / "cat").mkdir(parents=True)
    (tmp_path / "classes" / "cat" / "a.PNG").touch()
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "train-images-idx3-ubyte.gz").touch()
    assert with_data([f"data.path={path}", "kernel=fcn"]) == [f"data.path={path}", "kernel=fcn", f"data={kind}"]


def test_what_is_said_stays():
    for word in ("data=mnist", "data.kind=mnist", "experiment=cifar10_fcn"):
        assert with_data([word, "data.path=a.npz"]) == [word, "data.path=a.npz"]
    for kernel in ("gram", "features"):
        assert with_data([f"kernel={kernel}", "data.path=a.npz"])[-1] == "data=labels"
    assert with_data(["kernel=fcn"]) == ["kernel=fcn"]


@pytest.mark.parametrize("path", ["somewhere", "a.dat", "a.npz,b.csv"])
def test_what_is_not_recognised_is_asked_for(path):
    with pytest.raises(ConfigError, match="choose one, data=npz"):
        with_data([f"data.path={path}"])


def test_a_run_of_a_file_alone(command, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"x_train": rng.normal(size=(20, 5)), "x_test": rng.normal(size=(4, 5))}
    np.savez(tmp_path / "mine.npz", **arrays, y_train=np.arange(20) % 2, y_test=np.arange(4) % 2)
    code, _, err = command("gram", "data.path=mine.npz")
    assert code == 0, err
    assert "data     npz, recognised from mine.npz" in err
    assert [path.name.rpartition("-")[0] for path in (tmp_path / "runs").iterdir()] == ["mine-fcn"]
