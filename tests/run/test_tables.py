"""Runs on tables: from a file to metrics, in the units of the data."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import ntkpipe as nk
from ntkpipe.cli.main import main


def write(path, n=60, *, wide=False):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(n, 3)), columns=["a", "b", "c"])
    table["group"] = rng.choice(["x", "y"], n)
    table["price"] = 100 + 20 * table["a"] + 5 * (table["group"] == "x") + rng.normal(size=n)
    if wide:
        table["weight"] = 1e-3 * table["b"]
    table.to_csv(path, index=False)
    return table


def run(tmp_path, *words):
    code = main(["run", "cluster=serial", f"run_dir={tmp_path / 'run'}", f"store.url={tmp_path / 'store'}", *words])
    assert code == 0
    return nk.open_run(tmp_path / "run")


def test_predictions_are_in_the_units_of_the_table(tmp_path, capsys):
    table = write(tmp_path / "t.csv")
    words = [f"data.path={tmp_path / 't.csv'}", "data=table", "data.target=price", "predict.covariance=diagonal"]
    found = run(tmp_path, *words, "predict.ridges=[1e-2]", "predict.times=[inf]").predictions()
    price = table["price"].to_numpy()
    np.testing.assert_array_equal(found.target[:, 0], price[found.test_index])
    data = nk.load_dataset("table", path=tmp_path / "t.csv", target="price")
    gram = nk.Gram(nk.zoo.fcn(), data)
    gram.compute()
    solution = nk.Eigh().solve(
        gram.train("ntk"), data.targets, times=[nk.inf], ridges=[1e-2], dynamics=nk.Dynamics(learning_rate=0.1)
    )
    again = solution.predict(gram.test("ntk"), covariance="diagonal")
    np.testing.assert_allclose(found.mean[0], again.mean[0], rtol=1e-4)
    np.testing.assert_allclose(found.variance[0], again.variance[0], rtol=1e-2)
    assert abs(found.mean - found.target).mean() < 10
    assert "points   48 + 12 prepared" in capsys.readouterr().err
    # New rows of the kernel are compared in the units of the data, too.
    assert main(["verify", f"run_dir={tmp_path / 'run'}", "repair=false", "rows=5"]) == 0


def test_several_targets_have_variances_of_their_own(tmp_path):
    write(tmp_path / "t.csv", wide=True)
    words = [
        f"data.path={tmp_path / 't.csv'}",
        "data=table",
        "data.target=[price,weight]",
        "predict.covariance=diagonal",
    ]
    found = run(tmp_path, *words, "predict.ridges=[1e-2]", "predict.times=[inf]").predictions()
    assert found.class_names == ("price", "weight")
    assert found.variance is not None
    assert found.variance.shape == (*found.shape[:4], 2)
    data = nk.load_dataset("table", path=tmp_path / "t.csv", target=["price", "weight"])
    ratio = found.variance[..., 0] / found.variance[..., 1]
    np.testing.assert_allclose(ratio, (data.prepared().scale[0] / data.prepared().scale[1]) ** 2)
    assert {"variance_0", "variance_1"} <= set(found.to_pandas().columns)


@pytest.mark.parametrize("target", ["price", "group"])
def test_nobody_need_know_the_test_targets(tmp_path, target, capsys):
    table = write(tmp_path / "t.csv")
    table.drop(columns=target).head(7).to_csv(tmp_path / "new.csv", index=False)
    words = [
        f"data.path={tmp_path / 't.csv'}",
        "data=table",
        f"data.target={target}",
        f"data.test_path={tmp_path / 'new.csv'}",
    ]
    words += ["predict.times=[inf]", "predict.kernels=[ntk]", "predict.ridges=[1e-2,1]", "predict.selection=held_out"]
    done = run(tmp_path, *words)
    assert done.predictions().shape[3] == 7
    assert not done.predictions().has_targets
    metrics = json.loads((done.path / "metrics.json").read_text())
    assert metrics["known"] is False
    assert metrics["entries"][0]["mse"] is None
    columns = set(done.predictions().to_pandas().columns)
    assert ("predicted_name" in columns) == (target == "group")
    assert not {"label", "target_0"} & columns
    told = capsys.readouterr().err
    assert "they have no labels" in told
    chosen = next(line for line in told.splitlines() if "ntk: t=inf, ridge " in line)
    name = "accuracy" if target == "group" else "root mean square"
    best = metrics["selection"]["chosen"]["ntk"]
    there = best["accuracy"] if target == "group" else best["mse"] ** 0.5
    assert chosen.endswith(f"{name} {there:.4f} on these")


@pytest.mark.parametrize("target", ["price", "group"])
def test_folds_are_reported(tmp_path, target, capsys):
    write(tmp_path / "t.csv")
    words = [
        f"data.path={tmp_path / 't.csv'}",
        "data=table",
        f"data.target={target}",
        "data.folds=4",
        "predict.ridges=[1e-2,1]",
    ]
    metrics = run(tmp_path, *words, "predict.times=[inf]").metrics()
    for kernel in ("ntk", "nngp"):
        record = metrics["cross_validation"][kernel]
        assert record["folds"] == 4
        assert np.shape(record["mse"]["mean"]) == (1, 2)
        assert ("accuracy" in record) == (target == "group")
    assert "cross-validation, 4 folds, ntk: best at t=inf" in capsys.readouterr().err
    assert "Cross-validation" in (tmp_path / "run" / "report" / "report.html").read_text()


@pytest.mark.parametrize("target", ["price", "[price,weight]"])
def test_errors_that_a_spectrum_predicts_are_in_the_units_of_the_table(tmp_path, target):
    write(tmp_path / "t.csv", wide=True)
    path = f"data.path={tmp_path / 't.csv'}"
    words = (
        path,
        "data=table",
        f"data.target={target}",
        "kernel.depth=1",
        "kernel.dtype=float64",
        "predict.kernels=[nngp]",
    )
    words += ("predict.ridges=[1e-2]", "predict.times=[inf]")
    found = run(tmp_path, *words).spectrum("nngp")
    names = target.strip("[]").split(",")
    data = nk.load_dataset("table", path=tmp_path / "t.csv", target=names)
    gram = nk.Gram(nk.zoo.fcn(depth=1), data, dtype="float64")
    gram.compute()
    kernel, scale = gram.train("nngp"), data.prepared().scale
    solved = nk.spectrum(kernel, data.targets, ridges=[1e-2])
    np.testing.assert_allclose(found.label_energy, solved.label_energy, atol=1e-12)
    # Every output by itself, and the mean over outputs, as the measured squared errors are.
    alone = [nk.spectrum(kernel, data.targets[:, [k]], ridges=[1e-2]) for k in range(len(names))]
    for measure in (
        lambda one: one.learning_curve([20])[0].test_mse,
        lambda one: one.cross_validated().gcv,
        lambda one: one.cross_validated().leave_one_out,
    ):
        wanted = np.mean([measure(one) * s**2 for one, s in zip(alone, scale, strict=True)])
        assert measure(found) == pytest.approx(wanted, rel=1e-8)
    dense = kernel.to_numpy() + 1e-2 * kernel.diagonal().mean() * np.eye(kernel.n)
    inverse = np.linalg.inv(dense)
    left_out = (inverse @ data.targets) / np.diagonal(inverse)[:, None] * scale
    assert found.cross_validated().leave_one_out == pytest.approx(np.mean(left_out**2), rel=1e-8)
