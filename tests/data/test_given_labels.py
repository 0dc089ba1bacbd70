from __future__ import annotations

import re

import numpy as np
import pytest

from ntkpipe.config import DataConfig
from ntkpipe.data.given_labels import load_given_labels
from ntkpipe.errors import DataError


def labels(path, **arrays):
    np.savez(path, **arrays)
    return DataConfig(kind="labels", path=str(path))


def test_labels_pair_up_with_the_rows_and_name_classes(tmp_path):
    config = labels(tmp_path / "y.npz", y_train=[0, 1, 2], y_test=[1, 2], class_names=["a", "b", "c"])
    found = load_given_labels(config, 3, 2)
    np.testing.assert_array_equal(found.labels_train, [0, 1, 2])
    np.testing.assert_array_equal(found.labels_test, [1, 2])
    assert found.class_names == ("a", "b", "c")
    with pytest.raises(DataError, match=re.escape("y_test of") + ".* 2 entries, but kernel.test has 3 rows"):
        load_given_labels(config, 3, 3)


def test_what_is_no_npz_of_both_arrays_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"lacks y_train \(it holds y_test\)"):
        load_given_labels(labels(tmp_path / "half.npz", y_test=[0, 1]), 0, 2)
    assert load_given_labels(labels(tmp_path / "known.npz", y_train=[0, 1]), 2, 3).labels_test is None
    np.save(tmp_path / "y.npy", np.zeros(2))
    with pytest.raises(DataError, match="single array"):
        load_given_labels(DataConfig(kind="labels", path=str(tmp_path / "y.npy")), 2, 0)
    objects = labels(tmp_path / "objects.npz", y_train=np.array([{}, {}], dtype=object), y_test=[0])
    with pytest.raises(DataError, match="plain arrays"):
        load_given_labels(objects, 2, 1)
