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
    with pytest.raises(DataError, match=r"shape 1 x 1 x 3, but the training points have 1 x 1 x 5 \(a, b"):
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
    assert "exists: choose another path" in capsys.readouterr().err


def test_batches_make_one_whole(folder, table, monkeypatch):
    run, x = nk.open_run(folder / "run"), table.drop(columns=["price", "part"])
    whole = run.predict(x)
    monkeypatch.setattr("ntkpipe.sources.new_points._BATCH_BYTES", 8 * 50 * 2 * 32)
    parts = run.predict(x)
    np.testing.assert_array_equal(parts.test_index, np.arange(70))
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=2e-3)


@pytest.mark.ray
@pytest.mark.slow
def test_other_processes_compute_the_same_and_leave_nothing(folder, table):
    run, x = nk.open_run(folder / "run"), table.drop(columns=["price", "part"])
    before = content(folder / "store")
    wanted = run.predict(x)
    with nk.LocalExecutor(workers=2) as executor:
        made = run.predict(x, executor=executor)
    np.testing.assert_allclose(made.mean, wanted.mean, rtol=1e-12)
    np.testing.assert_allclose(made.variance, wanted.variance, rtol=1e-9)
    assert content(folder / "store") == before
    assert not [one for one in (folder / "store").iterdir() if one.name.startswith("new-")]


def test_the_command_says_where_it_computes(folder, table, tmp_path, capsys):
    table.head(4).to_csv(tmp_path / "new.csv")
    words = ["predict", f"run_dir={folder / 'run'}", f"data.new={tmp_path / 'new.csv'}", f"path={tmp_path / 'a.csv'}"]
    assert main(words) == 0
    assert (
        "cluster  serial: about 0 s of one core for the kernel of the new points; set cluster=local to use that instead"
        in capsys.readouterr().err
    )
    assert main([*words, "overwrite=true", "cluster=slurm"]) == ConfigError.exit_code
    assert "cluster=slurm is not one of serial, local, ray" in capsys.readouterr().err


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
    with pytest.raises(DataError, match="float64, but the training points are uint8"):
        solution.predict(x[20:] / 255.0)


def test_a_given_kernel_takes_the_rows_of_new_points():
    x = np.random.default_rng(0).normal(size=(30, 3))
    whole = np.exp(-((x[:, None] - x[None]) ** 2).sum(axis=2) / 8)
    train, rows, diagonal, y = whole[:20, :20], whole[20:, :20], whole.diagonal()[20:], x[:20].sum(axis=1)
    gram = nk.Gram.from_arrays(train, rows, diagonal)
    for kernel in (gram.train(), train):
        solution = nk.Eigh().solve(kernel, y, ridges=[1e-2], times=[10, nk.inf])
        wanted = solution.predict(gram.test(), covariance="diagonal")
        made = solution.predict(rows, covariance="diagonal", diagonal=diagonal)
        np.testing.assert_array_equal(made.mean, wanted.mean)
        np.testing.assert_array_equal(made.variance, wanted.variance)
        np.testing.assert_array_equal(made.bound_kind, wanted.bound_kind)
        assert (solution.predict(rows[:3]).bound_kind == "estimate").all()
        with pytest.raises(ConfigError, match=r"variances need k\(x, x\) of the new points"):
            solution.predict(rows, covariance="diagonal")
    solution = nk.Eigh().solve(gram.train(), y, ridges=[1e-2])
    with pytest.raises(
        DataError, match=r"shape \(10, 3\): give the kernel between new points and all 20 training points"
    ):
        solution.predict(x[20:])
    with pytest.raises(DataError, match="give the diagonal of the same kernel"):
        solution.predict(rows, diagonal=diagonal / 100)
    data = nk.Dataset(x, x[:, 0] > 0, test_fraction=0.2)
    computed = nk.Gram(nk.zoo.fcn(depth=1), data)
    computed.compute()
    solution = nk.Eigh().solve(computed.train("nngp"), data.targets, ridges=[1e-2])
    with pytest.raises(ConfigError, match="diagonal is only for given kernels"):
        solution.predict(x, diagonal=diagonal)


def test_given_features_take_those_of_new_points():
    features = np.random.default_rng(0).normal(size=(30, 40))
    gram = nk.Gram.from_features(features[:20], features[20:], dtype="float64")
    gram.compute()
    rate = nk.Dynamics(learning_rate=0.1)
    solution = nk.Eigh().solve(gram.train(), features[:20, 0], ridges=0.1, times=[10, nk.inf], dynamics=rate)
    made = solution.predict(features[20:], covariance="diagonal")
    wanted = solution.predict(gram.test(), covariance="diagonal")
    np.testing.assert_allclose(made.mean, wanted.mean, rtol=1e-12)
    np.testing.assert_allclose(made.variance, wanted.variance, rtol=1e-9)
    with pytest.raises(DataError, match="give the 40 features of each new point"):
        solution.predict(features[20:, :3])
    with pytest.raises(DataError, match="is all zero"):
        solution.predict(np.zeros((2, 40)))


def test_a_run_of_given_matrices_takes_their_rows(tmp_path, capsys):
    x = np.random.default_rng(1).normal(size=(40, 3))
    whole = np.exp(-((x[:, None] - x[None]) ** 2).sum(axis=2) / 8)
    y = np.where(x[:, 0] > 0, 1, 0)
    for name, array in (("K", whole[:24, :24]), ("K_TEST", whole[24:34, :24]), ("d", whole.diagonal()[24:34])):
        np.save(tmp_path / f"{name}.npy", array)
    np.save(tmp_path / "K_NEW.npy", whole[34:, :24])
    np.save(tmp_path / "d_new.npy", whole.diagonal()[34:])
    np.savez(tmp_path / "y.npz", y_train=y[:24], y_test=y[24:34])
    words = ["kernel=gram", f"kernel.train={tmp_path / 'K.npy'}", f"kernel.test={tmp_path / 'K_TEST.npy'}"]
    words += [f"kernel.test_diagonal={tmp_path / 'd.npy'}", "data=labels", f"data.path={tmp_path / 'y.npz'}"]
    words += [f"run_dir={tmp_path / 'run'}", f"store.url={tmp_path / 'store'}", "predict.covariance=diagonal"]
    assert main(["run", *words, "predict.ridges=[1e-2]", "predict.times=[100,inf]", "report=false"]) == 0
    new = [
        "predict",
        f"run_dir={tmp_path / 'run'}",
        f"data.new={tmp_path / 'K_NEW.npy'}",
        f"path={tmp_path / 'out.csv'}",
    ]
    assert main(new) == ConfigError.exit_code
    assert "data.new_diagonal=FILE.npy" in capsys.readouterr().err
    before = content(tmp_path / "run")
    assert main([*new, f"data.new_diagonal={tmp_path / 'd_new.npy'}"]) == 0
    assert content(tmp_path / "run") == before
    made = pd.read_csv(tmp_path / "out.csv")
    assert len(made) == 6 * 2
    run = nk.open_run(tmp_path / "run")
    again = run.predict(whole[24:34, :24], diagonal=whole.diagonal()[24:34])
    np.testing.assert_allclose(again.mean, run.predictions().mean, rtol=1e-12)
    np.testing.assert_allclose(again.variance, run.predictions().variance, rtol=1e-9)
    assert again.predicts_classes


def test_covariances_of_several_standardised_targets_have_their_units(table, tmp_path):
    several = table.drop(columns="part").assign(weight=table["b"] / 100)
    several.to_csv(tmp_path / "t.csv", index=False)
    words = [f"data.path={tmp_path / 't.csv'}", "data=table", "data.target=[price,weight]", "predict.covariance=full"]
    words += [f"run_dir={tmp_path / 'run'}", f"store.url={tmp_path / 'store'}", "predict.ridges=1e-2"]
    assert main(["run", *words, "predict.times=10", "predict.kernels=nngp", "report=false"]) == 0
    run = nk.open_run(tmp_path / "run")
    made, new = run.predictions(), run.predict(several.head(5))
    p = len(made.test_index)
    assert made.covariance.shape == (1, 1, 1, p, p, 2)
    assert new.covariance.shape == (1, 1, 1, 5, 5, 2)
    for one in (made, new):
        np.testing.assert_allclose(np.einsum("...iic->...ic", one.covariance), one.variance, rtol=1e-9)
    ratio = made.covariance[..., 0] / made.covariance[..., 1]
    np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-9)
    assert ratio.flat[0] > 1e4
    assert made.to_xarray()["covariance"].dims == ("kernel", "time", "ridge", "test", "test_other", "class")
