"""Sequences are images of width 1, and convolutions along them have one number."""

from __future__ import annotations

import numpy as np
import pytest

import ntkpipe as nk
from ntkpipe.config import DataConfig, KernelConfig
from ntkpipe.data.dataset import load_dataset
from ntkpipe.errors import DataError
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
    with pytest.raises(DataError, match="volumes and films have no kernel here"):
        as_images("x", np.zeros((2, 3, 3, 3, 1)), None)


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
