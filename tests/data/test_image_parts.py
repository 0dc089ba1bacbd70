"""Folders of images without `test`."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from PIL import Image

from ntkpipe.config import DataConfig
from ntkpipe.data.dataset import load_raw
from ntkpipe.errors import DataError

RNG = np.random.default_rng(0)


def pictures(root, *, count=5):
    for name in ("bat", "owl"):
        (root / name).mkdir(parents=True)
        for k in range(count):
            Image.fromarray(RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(root / name / f"{k}.png")


def load(path, **settings):
    return load_raw(DataConfig(kind="image_folder", path=str(path), **settings))


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_validation_images_stand_for_test_images(tmp_path, name):
    pictures(tmp_path / "train")
    pictures(tmp_path / name, count=2)
    raw = load(tmp_path)
    assert (len(raw.x_train), len(raw.x_test), raw.class_names) == (10, 4, ("bat", "owl"))
    assert not raw.notes
    pictures(tmp_path / "test", count=3)
    assert len(load(tmp_path).x_test) == 6


@pytest.mark.parametrize("folder", [".", "train"])
def test_test_images_may_be_drawn(tmp_path, folder):
    pictures(tmp_path / folder)
    raw = load(tmp_path, test_fraction=0.4)
    assert (len(raw.x_train), len(raw.x_test), raw.class_names) == (6, 4, ("bat", "owl"))
    assert np.bincount(raw.y_test).tolist() == [2, 2]
    with pytest.raises(DataError, match=r"data\.test_fraction=0\.2"):
        load(tmp_path)


def test_a_zip_with_a_folder_of_its_own(tmp_path):
    pictures(tmp_path / "animals")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in sorted((tmp_path / "animals").rglob("*.png")):
            archive.write(file, file.relative_to(tmp_path))
    raw = load(tmp_path / "a.zip", test_fraction=0.2)
    assert (len(raw.x_train), len(raw.x_test), raw.class_names) == (8, 2, ("bat", "owl"))


def test_test_images_of_its_own_are_not_drawn(tmp_path):
    pictures(tmp_path / "train")
    pictures(tmp_path / "test")
    with pytest.raises(DataError, match="already has test images"):
        load(tmp_path, test_fraction=0.2)
