"""Volumes go the way of images: from a file to stored rows, tiles and predictions."""

from __future__ import annotations

import numpy as np
import pytest

import ntkpipe as nk
from ntkpipe.config import DataConfig, KernelConfig
from ntkpipe.data.dataset import load_dataset
from ntkpipe.data.prepared import verify_prepared, write_prepared
from ntkpipe.errors import ConfigError
from ntkpipe.gram.from_config import kernel_spec
from ntkpipe.storage.store import open_store

RNG = np.random.default_rng(0)
X, Y = RNG.normal(1.0, 2.0, (30, 4, 5, 6, 2)), np.arange(30) % 2


def test_volumes_of_a_file_are_stored_and_read(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=X.transpose(0, 4, 1, 2, 3), y_train=Y)
    config = DataConfig(kind="npz", path=str(tmp_path / "a.npz"), layout="NCDHW", test_fraction=0.2, unit_norm=True)
    data = load_dataset(config)
    assert data.x_train.shape == (24, 4, 5, 6, 2)
    np.testing.assert_allclose((data.x_train.reshape(24, -1) ** 2).sum(axis=1), 1, rtol=1e-5)
    store = open_store(str(tmp_path / "store"))
    images = write_prepared(data, store)
    np.testing.assert_array_equal(images.read("train", 3, 9), data.x_train[3:9])
    assert verify_prepared(store, images.prefix) == []


def test_predictions_of_volumes():
    data = nk.Dataset(X, Y, test_fraction=0.2)
    network = nk.zoo.cnn_gap(depth=1, filter=[2, 2, 2])
    gram = nk.Gram(network, data, dtype="float64")
    gram.compute()
    solution = nk.Eigh().solve(gram.train("ntk"), data.targets, ridges=[1e-3], times=[nk.inf])
    predicted = solution.predict(gram.test("ntk"))
    new = solution.predict(X[np.sort(predicted.test_index)])
    np.testing.assert_allclose(new.mean, predicted.mean, rtol=1e-9)
    with pytest.raises(ConfigError, match="these are volumes"):
        nk.Dataset(X, Y, downsample=2)


def test_filters_have_as_many_numbers_as_the_points_have_axes():
    spec = kernel_spec(KernelConfig(kind="cnn_vec", filter=(3, 3, 3)), (4, 5, 6, 2))
    assert spec[0]["filter"] == [3, 3, 3]
    with pytest.raises(
        ConfigError, match=r"kernel.filter=\[3, 2\] has 2 numbers, but the data has volumes of 4 x 5 x 6"
    ):
        kernel_spec(KernelConfig(kind="cnn_vec", filter=(3, 2)), (4, 5, 6, 2))
    assert kernel_spec(KernelConfig(kind="cnn_vec"), (4, 5, 6, 2)) == spec
    with pytest.raises(ConfigError, match="the data has images of 4 x 5"):
        kernel_spec(KernelConfig(kind="cnn_vec", filter=(3, 3, 3)), (4, 5, 2))
