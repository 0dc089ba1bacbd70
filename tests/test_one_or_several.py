"""One number or name where several are expected, in Python as on the command line."""

from __future__ import annotations

import numpy as np
import pytest

import ntkpipe as nk
from ntkpipe.config import DataConfig
from ntkpipe.errors import ConfigError

RNG = np.random.default_rng(0)


def test_times_and_ridges():
    data = nk.load_dataset("digits", train_size=20, test_size=5)
    gram = nk.Gram(nk.zoo.fcn(depth=1), data)
    gram.compute()
    one = nk.Eigh().solve(gram.train("nngp"), data.targets, ridges=0.1)
    several = nk.Eigh().solve(gram.train("nngp"), data.targets, ridges=[0.1], times=[10, nk.inf])
    made, other = one.predict(gram.test("nngp"), times=10), several.predict(gram.test("nngp"), times=[10])
    np.testing.assert_array_equal(made.mean, other.mean)
    np.testing.assert_array_equal(made.times, [10])
    krylov = nk.Krylov().solve(gram.train("nngp"), data.targets, ridges=0.1, times=10)
    np.testing.assert_allclose(krylov.predict(gram.test("nngp")).mean, made.mean, atol=1e-3)
    with pytest.raises(ConfigError, match="at least one time"):
        one.at([])


def test_settings_of_data():
    assert DataConfig(kind="image_folder", path="x", image_size=(32,)).image_size == (32, 32)
    with pytest.raises(ConfigError, match=r"data.image_size=\[32, 32, 3\] must be \[height, width\], or one number"):
        DataConfig(kind="image_folder", path="x", image_size=(32, 32, 3))
    made = nk.load_dataset("synthetic", n_train=10.0, n_test="5", classes=2)
    assert (made.n, made.p) == (10, 5)
    with pytest.raises(ConfigError, match=r"data.train_size=many must be a whole number"):
        nk.load_dataset("digits", train_size="many")
    x, y = RNG.normal(size=(12, 3)), np.arange(12) % 2
    with pytest.raises(ConfigError, match=r"data.test_fraction=\[0.1,0.2\] must be a number"):
        nk.Dataset(x, y, test_fraction=[0.1, 0.2])


def test_folder_of_images_of_one_size(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for k in range(8):
        folder = tmp_path / "train" / "ab"[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image.fromarray(RNG.integers(0, 256, (9 + k, 7, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    data = nk.load_dataset("image_folder", tmp_path, image_size=6, test_fraction=0.25)
    assert data.prepared().x_train.shape[1:] == (6, 6, 3)
