from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkpipe.config import DataConfig
from ntkpipe.data import raw as raw_module
from ntkpipe.data.dataset import load_dataset
from ntkpipe.data.duplicates import find_duplicates
from ntkpipe.data.preprocess import block_mean, channel_statistics, fit
from ntkpipe.errors import ConfigError, DataError

EPS = np.finfo(np.float64).eps


def config(**changes):
    return DataConfig(kind="synthetic", **changes)


def images(seed=0, n=20, shape=(8, 8, 3), dtype=np.uint8):
    rng = np.random.default_rng(seed)
    if dtype == np.uint8:
        return rng.integers(0, 256, (n, *shape), dtype=np.uint8)
    return rng.standard_normal((n, *shape)).astype(dtype)


def everything(x):
    return np.arange(x.shape[0])


@pytest.fixture
def tiny_chunks(monkeypatch):
    monkeypatch.setattr(raw_module, "_CHUNK_BYTES", 3000)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_standardised_images_have_zero_mean_and_unit_variance(dtype):
    x = images(dtype=dtype)
    out = fit(x, everything(x), config()).apply(x)
    bound = 8 * EPS * np.sqrt(x[..., 0].size)
    assert np.abs(out.mean(axis=(0, 1, 2))).max() <= bound
    assert np.abs(out.std(axis=(0, 1, 2)) - 1).max() <= bound


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([np.uint8, np.float64]), st.floats(-1e6, 1e6))
def test_statistics_equal_the_textbook(seed, dtype, shift):
    x = images(seed, n=5, shape=(3, 4, 2), dtype=dtype)
    if dtype is np.float64:
        x = x + shift  # cancellation: |mean| >> std
    mean, std = channel_statistics(x, everything(x))
    real = x.astype(np.longdouble) / (255 if dtype is np.uint8 else 1)
    size = np.abs(real).max()
    assert np.abs(mean - real.mean(axis=(0, 1, 2))).max() <= 60 * EPS * size
    assert np.abs(std - real.std(axis=(0, 1, 2))).max() <= 60 * EPS * (1 + size * EPS * size + size * 1e-3)


def test_statistics_do_not_depend_on_chunks_or_order(monkeypatch):
    x = images(n=64)
    mean, std = channel_statistics(x, everything(x))
    monkeypatch.setattr(raw_module, "_CHUNK_BYTES", 3000)
    again = channel_statistics(x[::-1].copy(), everything(x))
    assert np.array_equal(mean, again[0])
    assert np.array_equal(std, again[1])


@pytest.mark.usefixtures("tiny_chunks")
def test_transform_in_chunks_equals_apply():
    x = images(n=40, dtype=np.float64)
    order = np.random.default_rng(1).permutation(40)
    chain = fit(x, everything(x), config(unit_norm=True, zca=0.1, downsample=2))
    whole = chain.apply(x[order])
    # The products' sums may be ordered otherwise: d = 48 terms.
    np.testing.assert_allclose(chain.transform(x, order, "float64"), whole, rtol=0, atol=48 * EPS * np.abs(whole).max())
    assert chain.transform(x, order, "float32").dtype == np.float32


def test_constant_channel_becomes_zero(caplog):
    x = images(dtype=np.float64)
    x[..., 1] = 0.1
    with caplog.at_level(logging.WARNING):
        chain = fit(x, everything(x), config())
    assert "channels 1 are constant" in caplog.text
    out = chain.apply(x)
    assert not out[..., 1].any()
    assert chain.std is not None
    assert chain.std[1] == 1
    u = images()
    u[..., 2] = 77
    assert not fit(u, everything(u), config()).apply(u)[..., 2].any()


def test_block_mean():
    x = images(dtype=np.float64)
    y = block_mean(x, 4)
    assert y.shape == (20, 2, 2, 3)
    np.testing.assert_allclose(y[3, 1, 0, 2], x[3, 4:, :4, 2].mean(), rtol=0, atol=16 * EPS)
    with pytest.raises(ConfigError, match=r"downsample=3 must divide .* 8 x 8"):
        block_mean(x, 3)
    with pytest.raises(ConfigError, match="downsample"):
        fit(x, everything(x), config(downsample=3))


def test_unit_norm_and_zero_images():
    x = images(dtype=np.float64)
    x[3] = 0
    norms = np.linalg.norm(
        fit(x, everything(x), config(standardize="none", unit_norm=True)).apply(x).reshape(20, -1), axis=1
    )
    assert norms[3] == 0
    assert np.abs(np.delete(norms, 3) - 1).max() <= 4 * EPS


def test_without_standardisation_uint8_is_scaled_to_0_1():
    x = images()
    np.testing.assert_array_equal(fit(x, everything(x), config(standardize="none")).apply(x), x / 255.0)


@pytest.mark.usefixtures("tiny_chunks")
@pytest.mark.parametrize("strength", [0.0, 0.1, 10.0])
def test_zca_against_its_definition(strength):
    x = images(n=200, shape=(3, 3, 2), dtype=np.float64)
    x[..., 1] += 0.5 * x[..., 0]
    out = fit(x, everything(x), config(zca=strength)).apply(x).reshape(200, -1)
    flat = fit(x, everything(x), config()).apply(x).reshape(200, -1)
    flat = flat - flat.mean(axis=0)
    s, u = np.linalg.eigh(flat.T @ flat / 200)
    expected = flat @ u @ np.diag((s + strength * s.mean()) ** -0.5) @ u.T
    # Relative to the condition of the covariance, of order 10 to 100 here.
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e3 * EPS * np.abs(expected).max())
    if strength == 0:
        np.testing.assert_allclose(out.T @ out / 200, np.eye(18), rtol=0, atol=1e3 * EPS)


def test_singular_whitening_is_refused():
    x = images(n=5, dtype=np.float64)
    with pytest.raises(ConfigError, match=r"data\.zca=0.*larger"):
        fit(x, everything(x), config(zca=0.0))
    same = np.ones((5, 4, 4, 1))
    with pytest.raises(DataError, match="equal"):
        fit(same, everything(same), config(zca=0.1))


def test_overflowing_pixels_are_refused():
    x = images(dtype=np.float64) * 1e200
    with pytest.raises(DataError, match="overflow"):
        fit(x, everything(x), config())


def test_summary_is_plain_json():
    x = images()
    text = json.dumps(fit(x, everything(x), config(zca=0.1)).summary())
    assert json.loads(text)["statistics_rows"] == 20


def test_reference_inputs(reference_folder, cifar10_subset):
    public = json.loads((reference_folder / "public.json").read_text())
    arrays = np.load(reference_folder / "public.npz", allow_pickle=False)
    path = str(cifar10_subset)
    full = load_dataset(DataConfig(kind="npz", path=path), dtype="float64")
    small = load_dataset(DataConfig(kind="npz", path=path, downsample=4), dtype="float64")
    # The reference summed 5.2 million pixels one after the other: eps/2 for each addition as a random walk, about
    # sqrt(5.2e6) * eps * mean = 2e-13 expected, and 5e-12 measured against exact integer sums.
    assert np.abs(np.array(full.preprocessing["mean"]) - public["mean"]).max() <= 1e-11
    assert np.abs(np.array(full.preprocessing["std"]) - public["std"]).max() <= 1e-11
    for name, data in (("img32_fc", full), ("img32_small", full), ("img8", small)):
        entry = public["inputs"][name]
        for part, x, index in (("train", data.x_train, data.train_index), ("test", data.x_test, data.test_index)):
            rows = np.argsort(index)[entry[f"{part}_indices"]]
            # (pixel - mean) / std with mean off by 5e-12 and std 0.24.
            np.testing.assert_allclose(x[rows], arrays[entry[part]], rtol=0, atol=1e-10)


def test_duplicates():
    x = images(n=8, dtype=np.float32)
    assert find_duplicates(x) == []
    x[5], x[7], x[6] = x[1], x[1], x[0]
    x[0, 0, 0, 0], x[6, 0, 0, 0] = 0.0, -0.0
    assert find_duplicates(x) == [(1, 5), (0, 6), (1, 7)]
