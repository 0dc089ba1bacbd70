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


def test_a_singular_kernel_in_float32_leaves_out_what_float64_does():
    """A linear network of 18 numbers has a kernel of rank 19. Rounding of float32 entries makes other eigenvalues of either sign."""
    linear = [SPEC[0], SPEC[1]]
    with pytest.warns(UserWarning, match=r"singular to rounding \(21 null directions"):
        double = predict_in_memory(linear, X, LABELS, X_TEST)
    with pytest.warns(UserWarning, match=r"singular to rounding \(21 null directions"):
        single = predict_in_memory(linear, X, LABELS, X_TEST, dtype="float32")
    np.testing.assert_allclose(single.mean, double.mean, atol=1e-4)


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
        ({"y_train": LABELS + 0.5}, DataError, r"or pass an array \(n, c\)"),
        ({"y_train": LABELS + 1}, DataError, "subtract 1 from all labels, or give the number of classes="),
        ({"y_train": LABELS, "classes": 2}, DataError, "of 2 classes labels are 0..1"),
        ({"y_train": np.full((40, 1), np.nan)}, DataError, "NaN"),
        ({"y_train": np.array([["a"]] * 40)}, DataError, "single class"),
        ({"times": []}, ConfigError, "times is empty"),
        ({"x_train": X * 255}, DataError, "a factor of about 255"),
        ({"x_test": X_TEST[:0]}, DataError, "x_test is empty"),
        ({"layout": "HWCN"}, ConfigError, "NHWC, NCHW"),
        ({"x_train": np.where(np.arange(2) > 0, np.nan, X)}, DataError, "x_train holds NaN"),
        ({"x_test": X_TEST[:, :2]}, DataError, "shape"),
    ],
)
def test_refusals(change, error, text):
    arguments = {"x_train": X, "y_train": LABELS, "x_test": X_TEST, **change}
    with pytest.raises(error, match=text):
        predict_in_memory(SPEC, **arguments)


def test_labels_mean_the_same_in_every_form():
    expected = predict_in_memory(SPEC, X, LABELS, X_TEST).mean
    for y in (LABELS.astype(float), LABELS[:, None], np.array(list("abcd"))[LABELS]):
        np.testing.assert_array_equal(predict_in_memory(SPEC, X, y, X_TEST).mean, expected)


@pytest.mark.parametrize("kernel", ["ntk", "nngp", "ntkgp"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_covariances_are_symmetric_and_no_variance_is_negative(kernel, dtype):
    # Test images that were trained on, and one twice: all that is left of their variances is rounding.
    again = np.concatenate([X[:5], X[:5], X_TEST])
    made = predict_in_memory(
        SPEC, X, LABELS, again, times=[0, 10, math.inf], kernel=kernel, covariance="full", dtype=dtype
    )
    assert made.covariance is not None
    variances = predict_in_memory(
        SPEC, X, LABELS, again, times=[0, 10, math.inf], kernel=kernel, covariance="diagonal", dtype=dtype
    ).covariance
    for matrix, diagonal in zip(made.covariance, variances, strict=True):
        np.testing.assert_array_equal(matrix, matrix.T)
        assert (matrix.diagonal() >= 0).all()
        np.testing.assert_allclose(matrix.diagonal(), diagonal, atol=1e-9 if dtype == "float64" else 1e-2)


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


@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
def test_a_column_of_labels_is_labels(dtype):
    one, other = (predict_in_memory(SPEC, X, y, X_TEST).mean for y in (LABELS, LABELS[:, None].astype(dtype)))
    assert one.shape == (1, 7, 4)
    np.testing.assert_array_equal(one, other)


def test_real_columns_and_several_columns_are_targets():
    column = predict_in_memory(SPEC, X, LABELS[:, None].astype(float), X_TEST)
    one_hot = predict_in_memory(SPEC, X, np.eye(4, dtype=int)[LABELS], X_TEST)
    assert (column.mean.shape, one_hot.mean.shape) == ((1, 7, 1), (1, 7, 4))
    np.testing.assert_allclose(one_hot.mean @ np.arange(4), column.mean[..., 0], atol=1e-10)


def test_classes_that_are_empty():
    made = predict_in_memory(SPEC, X, LABELS, X_TEST, classes=6).mean
    assert made.shape == (1, 7, 6)
    targets = np.eye(6)[LABELS] - 1 / 6
    np.testing.assert_allclose(made, predict_in_memory(SPEC, X, targets, X_TEST).mean, atol=1e-12)


@pytest.mark.parametrize("time", [math.inf, 10, np.float64(10.0), np.array(10)])
def test_one_time_needs_no_list(time):
    made = predict_in_memory(SPEC, X, LABELS, X_TEST, times=time)
    assert made.times == (float(time),)
    np.testing.assert_array_equal(made.mean, predict_in_memory(SPEC, X, LABELS, X_TEST, times=[float(time)]).mean)


CONVOLUTIONAL = [{"op": "conv", "features": 8, "filter": [3, 3], "padding": "SAME"}, {"op": "relu"}, *SPEC]


@pytest.mark.parametrize("spec", [SPEC, CONVOLUTIONAL], ids=["flat", "convolutional"])
def test_layouts_mean_the_same_as_in_the_pipeline(spec):
    first, first_test = RNG.standard_normal((20, 3, 6, 5)), RNG.standard_normal((4, 3, 6, 5))
    last, last_test = (x.transpose(0, 2, 3, 1) for x in (first, first_test))
    y = LABELS[:20]
    with pytest.raises(DataError, match="layout='NCHW'"):
        predict_in_memory(spec, first, y, first_test)
    one = predict_in_memory(spec, first, y, first_test, layout="NCHW", covariance="diagonal")
    other = predict_in_memory(spec, last, y, last_test, covariance="diagonal")
    np.testing.assert_array_equal(one.mean, other.mean)
    assert one.covariance is not None
    np.testing.assert_array_equal(one.covariance, np.asarray(other.covariance))
    taken = predict_in_memory(spec, first, y, first_test, layout="NHWC").mean
    assert not np.array_equal(taken, one.mean) or spec is SPEC


def test_gray_images_need_no_axis_of_channels():
    x, x_test = RNG.standard_normal((20, 6, 5)), RNG.standard_normal((4, 6, 5))
    made = predict_in_memory(CONVOLUTIONAL, x, LABELS[:20], x_test).mean
    np.testing.assert_array_equal(
        made, predict_in_memory(CONVOLUTIONAL, x[..., None], LABELS[:20], x_test[..., None]).mean
    )
    with pytest.raises(DataError, match="64 x 4 pixels"):
        predict_in_memory(CONVOLUTIONAL, np.ones((20, 64, 4)), LABELS[:20], np.ones((4, 64, 4)))
