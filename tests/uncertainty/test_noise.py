"""Variances of the noise of targets, from training points."""

from __future__ import annotations

import numpy as np
import pytest

import ntkpipe as nk
from ntkpipe.errors import ConfigError
from ntkpipe.uncertainty.noise import likelihood_noise


def cost(kernel, y, s):
    total = kernel + s * np.eye(len(kernel))
    return np.linalg.slogdet(total)[1] + y @ np.linalg.solve(total, y)


def test_the_likelihood_is_largest_there():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (80, 1))
    kernel = np.exp(-((x - x.T) ** 2) / 0.1)
    y = rng.multivariate_normal(np.zeros(80), kernel + 0.05 * np.eye(80), 2).T * [1.0, 3.0]
    found = likelihood_noise(kernel, y)
    for k in range(2):
        best = cost(kernel, y[:, k], found[k])
        assert best <= cost(kernel, y[:, k], found[k] * 1.05)
        assert best <= cost(kernel, y[:, k], found[k] / 1.05)
    assert 0.02 < found[0] < 0.1


def problem(noise=0.3, n=120):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n, 3))
    y = 50 + 10 * (x[:, 0] - x[:, 1] + noise * rng.normal(size=n))
    data = nk.Dataset(x, y, labels="regression", targets="standardize", test_fraction=0.3)
    gram = nk.Gram(nk.zoo.fcn(depth=1), data, dtype="float64")
    gram.compute()
    settings = {"times": [nk.inf], "ridges": [1e-1], "dynamics": nk.Dynamics(learning_rate=0.1)}
    return nk.Eigh().solve(gram.train("nngp"), data.targets, **settings), gram.test("nngp"), data


@pytest.mark.parametrize("noise", ["likelihood", "held_out", 9.0])
def test_noise_is_added_in_the_units_of_the_data(noise):
    solution, test, data = problem()
    plain = solution.predict(test, covariance="diagonal")
    found = solution.predict(test, covariance="diagonal", noise=noise, held_out=0.3)
    np.testing.assert_array_equal(found.variance, plain.variance)
    assert found.noise is not None
    added = found.target_variance((0, 0, 0)) - plain.target_variance((0, 0, 0))[:, None]
    np.testing.assert_allclose(added, found.noise[0, 0, 0, 0], rtol=1e-6)
    if noise == 9.0:
        np.testing.assert_allclose(found.noise, 9.0)
    else:
        assert 0.3 < found.noise[0, 0, 0, 0] / 9.0 < 3
    entry = found.metrics().iloc[0]
    assert 0.75 <= entry["coverage_90"] <= 1
    assert found.to_xarray()["noise"].dims == ("kernel", "time", "ridge", "class")
    assert "noise_0" in found.to_pandas()
    assert data.p == 36


def test_noise_without_meaning_is_refused():
    solution, test, _ = problem(n=40)
    with pytest.raises(ConfigError, match="set covariance=diagonal"):
        solution.predict(test, noise=1.0)
    with pytest.raises(ConfigError, match="nor one of likelihood, held_out"):
        solution.predict(test, covariance="diagonal", noise="much")


def test_errors_of_real_targets_stand_beside_those_of_the_mean():
    solution, test, data = problem()
    found = solution.predict(test)
    from ntkpipe.predictions.metrics import compute_metrics

    metrics = compute_metrics(found)
    target, mean = found.target, found.mean[0, 0, 0]
    entry = metrics["entries"][0]
    np.testing.assert_allclose(entry["rmse"], np.sqrt(np.mean((target - mean) ** 2)))
    np.testing.assert_allclose(entry["r2"], 1 - np.mean((target - mean) ** 2) / target.var())
    centre = data.prepared().mean[0]
    np.testing.assert_allclose(metrics["of_the_mean"]["rmse"], np.sqrt(np.mean((target - centre) ** 2)), rtol=1e-6)
