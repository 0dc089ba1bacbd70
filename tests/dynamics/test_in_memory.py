from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

import ntkpipe
from ntkpipe.dynamics.in_memory import predict_in_memory
from ntkpipe.errors import ConfigError, DataError

SPEC = [
    {"op": "flatten"},
    {"op": "dense", "features": 64, "w_std": 1.4142135623730951, "b_std": 0.1},
    {"op": "relu"},
    {"op": "dense", "features": 10, "w_std": 1.4142135623730951, "b_std": 0.1},
]
RNG = np.random.default_rng(0)
X, X_TEST = RNG.standard_normal((40, 3, 3, 2)), RNG.standard_normal((7, 3, 3, 2))
LABELS = np.arange(40) % 4


def test_ridge_regression_with_the_kernel():
    made = predict_in_memory(SPEC, X, LABELS, X_TEST, times=[10, math.inf], ridge=1e-3)
    arch = ntkpipe.Architecture.from_spec(SPEC)
    gram, cross = arch(X).ntk, arch(X_TEST, X).ntk
    targets = np.eye(4)[LABELS] - 0.25
    assert made.ridge == pytest.approx(1e-3 * np.trace(gram) / 40)
    expected = cross @ np.linalg.solve(gram + made.ridge * np.eye(40), targets)
    np.testing.assert_allclose(made.mean[1], expected, atol=1e-10)
    assert made.mean.shape == (2, 7, 4)
    assert made.covariance is None
    assert made.times == (10.0, math.inf)
    np.testing.assert_allclose(made.mean.sum(-1), 0, atol=1e-12)  # centred targets stay centred
    assert made.max_learning_rate == pytest.approx(2 * 40 * 4 / (np.linalg.eigvalsh(gram)[-1] + made.ridge))


@pytest.mark.parametrize("kernel", ["ntk", "nngp", "ntkgp"])
def test_covariances(kernel):
    options = {"times": [0, 50, math.inf], "kernel": kernel, "ridge": 1e-6}
    full = predict_in_memory(SPEC, X, LABELS, X_TEST, covariance="full", **options)
    own = predict_in_memory(SPEC, X, LABELS, X_TEST, covariance="diagonal", **options)
    assert full.covariance is not None
    assert own.covariance is not None
    assert full.covariance.shape == (3, 7, 7)
    np.testing.assert_allclose(np.diagonal(full.covariance, axis1=1, axis2=2), own.covariance, atol=1e-10)
    prior = ntkpipe.Architecture.from_spec(SPEC).diagonal(X_TEST)
    np.testing.assert_allclose(own.covariance[0], prior.ntk if kernel == "ntkgp" else prior.nngp, rtol=1e-12)
    assert np.linalg.eigvalsh(full.covariance).min() > -1e-9


def test_targets_and_float32_and_an_architecture():
    targets = RNG.standard_normal((40, 2))
    arch = ntkpipe.Architecture.from_spec(SPEC)
    double = predict_in_memory(arch, X, targets, X_TEST, times=[100], dynamics="momentum", momentum=0.5)
    single = predict_in_memory(
        arch, X, targets, X_TEST, times=[100], dynamics="momentum", momentum=0.5, dtype="float32"
    )
    assert double.mean.dtype == single.mean.dtype == np.float64
    np.testing.assert_allclose(single.mean, double.mean, atol=1e-4)


def test_duplicated_images_warn_and_stay_finite():
    twice = np.concatenate([X, X])
    with pytest.warns(UserWarning, match="singular to rounding"):
        made = predict_in_memory(SPEC, twice, np.concatenate([LABELS, LABELS]), X_TEST)
    np.testing.assert_allclose(made.mean, predict_in_memory(SPEC, X, LABELS, X_TEST).mean, atol=1e-9)
    with pytest.warns(UserWarning, match="largest stable"):
        predict_in_memory(SPEC, X, LABELS, X_TEST, learning_rate=1e6)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"kernel": "cntk"}, ConfigError, "kernel='cntk'"),
        ({"covariance": "some"}, ConfigError, "covariance='some'"),
        ({"dtype": "float16"}, ConfigError, "dtype='float16'"),
        ({"times": [-1.0]}, ConfigError, r"predict\.times=-1"),
        ({"ridge": -1.0}, ConfigError, r"predict\.ridges=-1"),
        ({"dynamics": "gradient_descent", "times": [0.5]}, ConfigError, "whole steps"),
        ({"y_train": np.zeros(40, int)}, DataError, "single class"),
        ({"y_train": LABELS[:10]}, DataError, "y_train has shape"),
        ({"y_train": LABELS - 1}, DataError, "label -1"),
        ({"y_train": LABELS.astype(float)}, DataError, "integers"),
        ({"x_train": np.where(np.arange(2) > 0, np.nan, X)}, DataError, "x_train holds NaN"),
        ({"x_test": X_TEST[:, :2]}, DataError, "shape"),
    ],
)
def test_refusals(change, error, text):
    arguments = {"x_train": X, "y_train": LABELS, "x_test": X_TEST, **change}
    with pytest.raises(error, match=text):
        predict_in_memory(SPEC, **arguments)


def test_imports_with_jax_numpy_and_scipy_alone():
    # In a fresh interpreter in which everything else that the package knows is blocked.
    code = """
import sys, importlib.abc
class Block(importlib.abc.MetaPathFinder):
    banned = set("ray zarr hydra omegaconf obstore fsspec pandas pyarrow sklearn matplotlib google_crc32c".split())
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.banned:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Block())
for name in ("filters", "gains", "gaussian_process", "krylov", "sampling", "bounds", "times", "in_memory"):
    __import__("ntkpipe.dynamics." + name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
