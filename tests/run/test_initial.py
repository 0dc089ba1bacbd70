"""Measures of a run whose training starts from given outputs are those of its outputs, not of what is left to learn."""

from __future__ import annotations

import numpy as np
import pytest
from lab import Lab

import ntkpipe as nk
from ntkpipe.data.points import Dataset
from ntkpipe.uncertainty.folds import fold_numbers

N, P, C, FOLDS = 40, 10, 3, 4


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N + P, 4))
    labels = (x @ rng.normal(size=(4, C))).argmax(axis=1)
    start = 3.0 * rng.normal(size=(N + P, C))
    folder = tmp_path_factory.mktemp("initial")
    np.savez(folder / "classes.npz", x_train=x[:N], y_train=labels[:N], x_test=x[N:], y_test=labels[N:])
    y = 7 + np.sin(x[:, :C])
    np.savez(folder / "numbers.npz", x_train=x[:N], y_train=y[:N], x_test=x[N:], y_test=y[N:])
    np.savez(folder / "start.npz", train=start[:N], test=start[N:])
    return Lab(
        folder, "cluster=serial", "data=npz", "grid.edge=16", "kernel=fcn", "kernel.depth=1", "kernel.dtype=float64",
        "predict.kernels=[ntk]", "predict.ridges=[1e-2]", "predict.times=[20,inf]", "predict.initial=start.npz", "report=false",
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_folds_and_the_baseline(work, kind):
    work.run(kind, f"data.path={kind}.npz", f"data.folds={FOLDS}", *["data.labels=regression"] * (kind == "numbers"))
    found = work.metrics(kind)
    made = found["cross_validation"]["ntk"]
    loaded, start = np.load(work.path / f"{kind}.npz"), np.load(work.path / "start.npz")
    data = Dataset(loaded["x_train"], loaded["y_train"], loaded["x_test"], loaded["y_test"]).prepared("float64")
    start, labels = start["train"][data.train_index], data.labels_train
    numbers, points = fold_numbers(N, FOLDS, labels), data.x_train[:, 0, 0]
    measures = []
    for fold in range(FOLDS):
        held, kept = numbers == fold, numbers != fold
        learnt = nk.predict_in_memory(
            nk.zoo.fcn(depth=1), points[kept], data.y_train[kept] - start[kept], points[held],
            times=[20, nk.inf], ridge=1e-2,
        ).mean  # fmt: skip
        outputs, y = np.asarray(learnt).reshape(2, -1, C) + start[held], data.y_train[held]
        if kind == "classes":
            measures.append((outputs.argmax(axis=2) == labels[held]).mean(axis=1))
        else:
            measures.append((1 - ((outputs - y) ** 2).mean(axis=1) / y.var(axis=0)).mean(axis=1))
    name = "accuracy" if kind == "classes" else "r2"
    np.testing.assert_allclose(np.ravel(made[name]["mean"]), np.mean(measures, axis=0), rtol=1e-8)
    if kind == "numbers":
        wanted = np.mean((loaded["y_test"] - loaded["y_train"].mean(axis=0)) ** 2)
        assert found["of_the_mean"]["mse"] == pytest.approx(wanted, rel=1e-12)
