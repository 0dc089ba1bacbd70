"""Sequences are images of width 1, and convolutions along them have one number."""

from __future__ import annotations

import numpy as np
import pytest

import ntkpipe as nk
from ntkpipe.config import DataConfig, KernelConfig
from ntkpipe.data.dataset import load_dataset
from ntkpipe.errors import ConfigError, DataError
from ntkpipe.gram.from_config import kernel_spec
from ntkpipe.kernels.images import as_images

RNG = np.random.default_rng(0)
SERIES = [
    {"op": "conv", "features": 1, "filter": [3]},
    {"op": "relu"},
    {"op": "avg_pool", "window": [2]},
    {"op": "conv", "features": 1, "filter": [3], "w_std": 1.4},
    {"op": "relu"},
    {"op": "global_avg_pool"},
    {"op": "dense", "features": 1},
]


def two(layers):
    """The same with both numbers of every window."""
    names = ("filter", "window")
    return [{k: [*v, 1] if k in names else v for k, v in layer.items()} for layer in layers]


def test_layouts_of_sequences():
    x = RNG.normal(size=(5, 7, 2))
    np.testing.assert_array_equal(as_images("x", x, "NLC"), x[:, :, None])
    np.testing.assert_array_equal(as_images("x", x.transpose(0, 2, 1), "NCL"), x[:, :, None])
    with pytest.raises(DataError, match=r"set data\.layout=NHWC if they have .* data\.layout=NLC"):
        as_images("x", x, None)
    with pytest.raises(DataError, match="layout=NLC is for sequences"):
        as_images("x", x[..., None], "NLC")


def test_one_number_is_a_window_along_the_sequence():
    x = RNG.normal(size=(4, 8, 2))
    one, other = nk.Architecture.from_spec(SERIES), nk.Architecture.from_spec(two(SERIES))
    assert one.to_spec() == other.to_spec()
    np.testing.assert_array_equal(one(x, layout="NLC").ntk, other(x[:, :, None], layout="NHWC").ntk)


def test_a_first_convolution_averages_its_taps():
    x = RNG.normal(size=(3, 6, 2))
    spec = [
        {"op": "conv", "features": 1, "filter": [3], "padding": "CIRCULAR"},
        {"op": "flatten"},
        {"op": "dense", "features": 1},
    ]
    padded = np.concatenate([x[:, -1:], x, x[:, :1]], axis=1)
    taps = np.stack([padded[:, k : k + 6] for k in range(3)], axis=2)
    want = np.einsum("alkc,blkc->ab", taps, taps) / (6 * 3 * 2)
    np.testing.assert_allclose(nk.Architecture.from_spec(spec)(x, layout="NLC").nngp, want, rtol=1e-6)


@pytest.mark.parametrize("filter", [(5,), (5, 5)])
def test_one_number_is_both_of_images_and_the_length_of_sequences(filter):
    kernel = KernelConfig(kind="cnn_gap", filter=filter)
    assert kernel_spec(kernel, (8, 8, 1))[0]["filter"] == [5, 5]
    assert kernel_spec(kernel, (8, 1, 2))[0]["filter"] == [5, 1]


def test_sequences_from_a_file(tmp_path):
    x, y = RNG.normal(size=(30, 9, 2)), np.arange(30) % 2
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y)
    data = load_dataset(DataConfig(kind="npz", path=str(tmp_path / "a.npz"), layout="NLC", test_fraction=0.2))
    assert data.x_train.shape == (24, 9, 1, 2)
    np.testing.assert_allclose(data.x_train.mean(axis=(0, 1, 2)), 0, atol=1e-6)
    made = nk.Dataset(x, y, layout="NLC", test_fraction=0.2)
    gram = nk.Gram(nk.zoo.cnn_gap(depth=1, filter=[3]), made)
    gram.compute()
    assert gram.train("ntk").shape == (24, 24)


LENGTHS = np.random.default_rng(1).integers(4, 10, 30)


def sequences(positions=9, garbage=0.0):
    x = np.random.default_rng(2).normal(2.0, 3.0, (30, 9, 2))
    x = np.concatenate([x, np.zeros((30, positions - 9, 2))], axis=1)
    x[np.arange(positions) >= LENGTHS[:, None]] = garbage
    return x


def test_a_mask_is_part_of_the_data_and_what_follows_an_end_is_not():
    y = np.arange(30) % 2
    plain, one, other, shorter = (
        nk.Dataset(x, y, layout="NLC", test_fraction=0.2, mask=mask).prepared("float64")
        for x, mask in (
            (sequences(), None),
            (sequences(), LENGTHS),
            (sequences(garbage=np.nan), np.arange(9) < LENGTHS[:, None]),
            (sequences(), np.maximum(LENGTHS - 1, 1)),
        )
    )
    assert one.fingerprint == other.fingerprint
    assert len({data.fingerprint for data in (plain, one, shorter)}) == 3
    np.testing.assert_array_equal(one.x_train, other.x_train)
    # Standardised over positions of sequences alone.
    np.testing.assert_allclose(np.nanmean(one.x_train, axis=(0, 1, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(np.nanstd(one.x_train, axis=(0, 1, 2)), 1, atol=1e-12)
    assert np.isnan(one.x_test[..., 0]).sum() == (9 - LENGTHS[one.test_index]).sum()


def test_predictions_do_not_depend_on_the_padding():
    y = np.arange(30) % 2
    made = []
    for positions in (9, 12):
        data = nk.Dataset(sequences(positions), y, layout="NLC", test_fraction=0.2, mask=LENGTHS)
        gram = nk.Gram(nk.zoo.cnn_gap(depth=1, filter=[3]), data, dtype="float64")
        gram.compute()
        solution = nk.Eigh().solve(gram.train("ntk"), data.targets, ridges=[1e-3], times=[nk.inf])
        new = sequences(positions, garbage=np.nan)[:4, :, None]
        made.append([solution.predict(points).mean for points in (gram.test("ntk"), new)])
    for one, other in zip(*made, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_masks_of_a_file(tmp_path):
    x, y, path = sequences(), np.arange(30) % 2, tmp_path / "a.npz"
    np.savez(path, x_train=x, y_train=y, mask_train=LENGTHS)
    data = load_dataset(DataConfig(kind="npz", path=str(path), layout="NLC", test_fraction=0.2))
    right = nk.Dataset(x, y, layout="NLC", test_fraction=0.2, mask=LENGTHS).prepared()
    assert data.fingerprint == right.fingerprint
    np.savez(path, x_train=x, y_train=y, x_test=x[:5], y_test=y[:5], mask_train=LENGTHS, mask_test=LENGTHS[:5])
    data = load_dataset(DataConfig(kind="npz", path=str(path), layout="NLC"))
    assert np.isnan(data.x_test[..., 0]).sum() == (9 - LENGTHS[:5]).sum()
    x[3, 0] = np.nan
    np.savez(path, x_train=x, y_train=y, mask_train=LENGTHS)
    config = {"kind": "npz", "path": str(path), "layout": "NLC", "test_fraction": 0.2}
    with pytest.raises(DataError, match=r"rows? 3\)"):
        load_dataset(DataConfig(**config))
    kept = load_dataset(DataConfig(**config, drop_invalid=True))
    assert len(kept.x_train) + len(kept.x_test) == 29
    np.savez(path, x_train=x, y_train=y, mask_train=LENGTHS[:4])
    with pytest.raises(DataError, match="they must pair up"):
        load_dataset(DataConfig(**config))
    with pytest.raises(ConfigError, match="cannot be downsampled or whitened"):
        nk.Dataset(sequences(), y, layout="NLC", mask=LENGTHS, zca=0.1).prepared()
