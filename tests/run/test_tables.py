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
    done = run(tmp_path, *words, "predict.times=[inf]", "predict.kernels=[ntk]")
    assert done.predictions().shape[3] == 7
    assert not done.predictions().has_targets
    metrics = json.loads((done.path / "metrics.json").read_text())
    assert metrics["known"] is False
    assert metrics["entries"][0]["mse"] is None
    columns = set(done.predictions().to_pandas().columns)
    assert ("predicted_name" in columns) == (target == "group")
    assert not {"label", "target_0"} & columns
    assert "nothing is known of their labels" in capsys.readouterr().err


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
    assert "4 folds of the training points, ntk: best at t=inf" in capsys.readouterr().err
    assert "Cross-validation" in (tmp_path / "run" / "report" / "report.html").read_text()
