"""New, unlabelled points are predicted by what a run has solved."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
import pytest

import ntkpipe as nk
from ntkpipe.cli.main import main
from ntkpipe.errors import ConfigError, DataError


def content(folder):
    """Names and content of all files that a run has published."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not {".leases", "leases"} & set(file.parts)
    }


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    made = pd.DataFrame(rng.normal(size=(70, 3)), columns=["a", "b", "c"])
    made["group"] = rng.choice(["x", "y"], 70)
    made["price"] = 100 + 20 * made["a"] + 5 * (made["group"] == "x") + rng.normal(size=70)
    made["part"] = ["train"] * 50 + ["test"] * 20
    return made


@pytest.fixture(scope="module")
def folder(table, tmp_path_factory):
    place = tmp_path_factory.mktemp("table")
    table.to_csv(place / "t.csv", index=False)
    words = [
        "data=table",
        f"data.path={place / 't.csv'}",
        "data.target=price",
        "data.split=part",
        "cluster=serial",
        "grid.edge=32",
    ]
    words += [
        f"run_dir={place / 'run'}",
        f"store.url={place / 'store'}",
        "predict.ridges=[1e-2,1e-1]",
        "predict.times=[10,inf]",
    ]
    words += ["predict.covariance=diagonal", "predict.noise=held_out"]
    assert main(["run", *words]) == 0
    return place


def test_the_test_points_are_predicted_as_the_run_did(folder, table):
    before = content(folder)
    run = nk.open_run(folder / "run")
    old, new = run.predictions(), run.predict(table.iloc[50:].drop(columns=["price", "part"]))
    assert content(folder) == before
    np.testing.assert_array_equal(new.test_index, np.arange(20))
    for name in ("mean", "variance"):
        np.testing.assert_allclose(getattr(new, name), getattr(old, name), rtol=2e-3)
    np.testing.assert_array_equal(new.noise, old.noise)
    assert not new.has_targets
    assert (np.isfinite(new.error_bound) == np.isfinite(old.error_bound)).all()
    with pytest.raises(DataError, match="no column 'c'"):
        run.predict(table[["a", "b", "group"]])
    with pytest.raises(DataError, match=r"shape 1 x 1 x 3, and those of training 1 x 1 x 5 \(a, b"):
        run.predict(np.zeros((2, 3)))


@pytest.mark.parametrize("ending", ["csv", "npz", "parquet", "zarr"])
def test_the_command_writes_a_file(folder, table, tmp_path, ending, capsys):
    table.head(4)[["group", "c", "b", "a"]].to_parquet(tmp_path / "new.parquet")
    words = [
        "predict",
        f"run_dir={folder / 'run'}",
        f"data.new={tmp_path / 'new.parquet'}",
        f"path={tmp_path / f'out.{ending}'}",
    ]
    before = content(folder)
    assert main(words) == 0
    assert content(folder) == before
    assert "4 points, 2 kernels, 2 times, 2 ridges" in capsys.readouterr().out
    assert (tmp_path / f"out.{ending}").exists()
    if ending == "csv":
        made = pd.read_csv(tmp_path / "out.csv")
        assert len(made) == 4 * 2 * 2 * 2
        assert {"mean_0", "variance", "noise_0"} <= set(made.columns)
        assert "target_0" not in made
    assert main(words) == ConfigError.exit_code
    assert "exists and is left as it is" in capsys.readouterr().err


def test_batches_make_one_whole(folder, table, monkeypatch):
    run, x = nk.open_run(folder / "run"), table.drop(columns=["price", "part"])
    whole = run.predict(x)
    monkeypatch.setattr("ntkpipe.sources.new_points._BATCH_BYTES", 8 * 50 * 2 * 32)
    parts = run.predict(x)
    np.testing.assert_array_equal(parts.test_index, np.arange(70))
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=2e-3)


def test_a_solution_takes_arrays_and_classes():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4))
    y = np.where(x[:, 0] > 0, "up", "down")
    data = nk.Dataset(x[:40], y[:40], x[40:], y[40:])
    gram = nk.Gram(nk.zoo.fcn(depth=1), data, dtype="float64")
    gram.compute()
    solution = nk.Eigh().solve(
        gram.train("ntk"), data.targets, times=[nk.inf], ridges=[1e-2], dynamics=nk.Dynamics(learning_rate=0.1)
    )
    old, new = solution.predict(gram.test("ntk")), solution.predict(x[40:])
    np.testing.assert_allclose(new.mean, old.mean, rtol=1e-9)
    assert new.predicts_classes
    assert set(new.to_pandas()["predicted_name"]) == {"up", "down"}
    with pytest.raises(DataError, match="row 1 of the new points holds NaN"):
        solution.predict(np.where(np.arange(12).reshape(3, 4) == 5, np.nan, 1.0))


def test_pictures_are_prepared_as_the_training_pictures_were():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (30, 4, 4, 3), dtype=np.uint8), np.arange(30) % 2
    data = nk.Dataset(x[:20], y[:20], x[20:], y[20:], unit_norm=True, downsample=2)
    gram = nk.Gram(nk.zoo.fcn(depth=1), data, augment="hflip")
    gram.compute()
    solution = nk.Eigh().solve(gram.train("nngp"), data.targets, times=[nk.inf], ridges=[1e-2])
    np.testing.assert_allclose(solution.predict(x[20:]).mean, solution.predict(gram.test("nngp")).mean, atol=1e-4)
    with pytest.raises(DataError, match="float64 and those of training uint8"):
        solution.predict(x[20:] / 255.0)


def test_a_given_kernel_has_no_new_points():
    kernel = np.eye(3)
    gram = nk.Gram.from_arrays(kernel, kernel[:2])
    solution = nk.Eigh().solve(gram.train(), np.zeros(3), times=[nk.inf])
    with pytest.raises(ConfigError, match="the kernel was given"):
        solution.predict(np.zeros((2, 3)))
