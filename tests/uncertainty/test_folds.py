"""Cross-validation by one Gram matrix is that of training each part anew."""

from __future__ import annotations

import numpy as np
import pytest

import ntkpipe as nk
from ntkpipe.errors import ConfigError
from ntkpipe.uncertainty.folds import cross_validate, fold_numbers


def test_parts_are_equal_and_so_are_their_classes():
    labels = np.random.default_rng(0).choice(3, 50, p=[0.6, 0.3, 0.1])
    found = fold_numbers(50, 4, labels)
    assert np.ptp(np.bincount(found)) <= 1
    for k in range(3):
        assert np.ptp(np.bincount(found[labels == k], minlength=4)) <= 1
    with pytest.raises(ConfigError, match="exceeds the number of training points"):
        fold_numbers(3, 4)


@pytest.mark.parametrize("solver", [nk.Eigh(), nk.Krylov(tolerance=1e-10)])
def test_each_part_is_predicted_from_the_others(solver):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    y = 5 + 2 * x[:, :1] + 0.1 * rng.normal(size=(60, 1))
    data = nk.Dataset(x[:50], y[:50], x[50:], y[50:], labels="regression", targets="standardize", standardize="none")
    gram = nk.Gram(nk.zoo.fcn(depth=1), data, dtype="float64")
    gram.compute()
    rate = nk.Dynamics(learning_rate=0.1)
    solution = solver.solve(gram.train("ntk"), data.targets, times=[30, nk.inf], ridges=[1e-2, 1e-1], dynamics=rate)
    scale = data.prepared().scale
    record = cross_validate(solution, 5, scale=scale)
    points, numbers, errors = data.prepared("float64").x_train[:, 0, 0], fold_numbers(50, 5), []
    for fold in range(5):
        held, kept = numbers == fold, numbers != fold
        part = [
            nk.predict_in_memory(
                nk.zoo.fcn(depth=1), points[kept], data.targets[kept], points[held],
                times=[30, nk.inf], ridge=ridge, learning_rate=0.1,
            ).mean
            for ridge in (1e-2, 1e-1)
        ]  # fmt: skip
        off = (np.stack(part, axis=1) - data.targets[held]) * scale
        errors.append(np.mean(off**2, axis=(2, 3)))
    np.testing.assert_allclose(record["mse"]["mean"], np.mean(errors, axis=0), rtol=1e-6)
    spread = np.std(errors, axis=0, ddof=1) / np.sqrt(5)
    np.testing.assert_allclose(record["mse"]["standard_error"], spread, rtol=1e-6)
    best = record["best"]
    assert best["mse"] == np.min(record["mse"]["mean"])
    assert {"rmse", "r2"} <= set(best)
