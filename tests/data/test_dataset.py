from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ntkpipe.config import DataConfig
from ntkpipe.data.dataset import load_dataset
from ntkpipe.errors import ConfigError, DataError


def save(path, **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8),
        "y_train": np.arange(40) % 4,
        "x_test": rng.integers(0, 256, (10, 4, 4, 3), dtype=np.uint8),
        "y_test": np.arange(10) % 4,
        **changes,
    }
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return DataConfig(kind="npz", path=str(path))


def with_(config, **changes):
    return dataclasses.replace(config, **changes)


@pytest.fixture
def config(tmp_path):
    return save(tmp_path / "a.npz")


def test_rows_belong_together(config):
    data = load_dataset(with_(config, standardize="none"), dtype="float64")
    source = np.load(config.path)
    for part in ("train", "test"):
        x, y, labels = (getattr(data, f"{k}_{part}") for k in ("x", "y", "labels"))
        index = getattr(data, f"{part}_index")
        np.testing.assert_array_equal(x, source[f"x_{part}"][index] / 255.0)
        np.testing.assert_array_equal(labels, source[f"y_{part}"][index])
        np.testing.assert_array_equal(y.argmax(axis=1), labels)
    assert (data.n_train, data.n_test) == (40, 10)
    assert data.class_names == ("0", "1", "2", "3")


@settings(deadline=None, max_examples=15)
@given(st.integers(4, 40), st.integers(4, 40), st.integers(0, 50), st.booleans())
def test_subsets_are_nested_and_share_a_fingerprint(small, large, seed, balanced):
    small, large = sorted((small, large))
    base = DataConfig(
        kind="synthetic", n_train=40, n_test=10, classes=4, shape=(3, 3, 1), subset_seed=seed, balanced=True
    )
    base = with_(base, balanced=balanced, labels="centered")
    first = load_dataset(base).labels_train[:small]
    assume(first.min() < first.max())  # a subset of one class is refused
    a, b = (load_dataset(with_(base, train_size=n)) for n in (small, large))
    assert np.array_equal(a.train_index[: a.n_train], b.train_index[: b.n_train][:small])
    assert np.array_equal(a.x_train, b.x_train)
    assert a.fingerprint == b.fingerprint
    assert (a.n_train, b.n_train) == (small, large)
    if balanced:
        counts = np.bincount(b.labels_train[: b.n_train], minlength=4)
        assert counts.max() - counts.min() <= 1


def test_subset_statistics_change_images_and_fingerprint(config):
    full = load_dataset(with_(config, train_size=20), dtype="float64")
    subset = load_dataset(with_(config, train_size=20, statistics="subset"), dtype="float64")
    assert full.fingerprint != subset.fingerprint
    assert subset.preprocessing["statistics_rows"] == 20
    assert np.abs(subset.x_train[:20].mean(axis=(0, 1, 2))).max() < 1e-14
    assert subset.x_train.shape == full.x_train.shape
    whole = load_dataset(with_(config, statistics="subset"), dtype="float64")
    assert whole.fingerprint == load_dataset(config).fingerprint


def test_fingerprint_ignores_what_the_gram_matrix_does_not_depend_on(config, tmp_path):
    base = load_dataset(config).fingerprint
    for changes in (
        {"labels": "half"},
        {"labels": "regression"},
        {"train_size": 7},
        {"test_size": 3},
        {"drop_invalid": True},
        {"noise": 3.0},
    ):
        assert load_dataset(with_(config, **changes)).fingerprint == base, changes
    assert load_dataset(config, dtype="float64").fingerprint == base
    relabelled = save(tmp_path / "b.npz", y_train=np.arange(40)[::-1] % 4)
    assert load_dataset(relabelled).fingerprint == base
    plain = with_(config, standardize="none")
    assert load_dataset(with_(plain, statistics="subset", train_size=9)).fingerprint == load_dataset(plain).fingerprint


def test_fingerprint_sees_content_preprocessing_and_order(config, tmp_path):
    source = dict(np.load(config.path))
    seen = {load_dataset(config).fingerprint}
    for changes in (
        {"standardize": "none"},
        {"unit_norm": True},
        {"zca": 0.1},
        {"zca": 0.2},
        {"downsample": 2},
        {"subset_seed": 1},
        {"balanced": True},
        {"statistics": "subset", "train_size": 20},
        {"statistics": "subset", "train_size": 21},
    ):
        print_ = load_dataset(with_(config, **changes)).fingerprint
        assert print_ not in seen, changes
        seen.add(print_)
    for name in ("x_train", "x_test"):
        changed = source[name].copy()
        changed[-1, -1, -1, -1] ^= 1
        print_ = load_dataset(save(tmp_path / f"{name}.npz", **{**source, name: changed})).fingerprint
        assert print_ not in seen, name
        seen.add(print_)
    as_float = {k: source[k].astype(np.float64) for k in ("x_train", "x_test")}
    assert load_dataset(save(tmp_path / "f.npz", **{**source, **as_float})).fingerprint not in seen


def test_dropped_images_keep_their_source_rows(tmp_path):
    rng = np.random.default_rng(1)
    x = rng.random((40, 4, 4, 3))
    x[[3, 17], 0] = np.nan
    config = save(tmp_path / "n.npz", x_train=x, x_test=rng.random((10, 4, 4, 3)))
    with pytest.raises(DataError, match="rows 3, 17"):
        load_dataset(config)
    data = load_dataset(with_(config, drop_invalid=True, standardize="none"), dtype="float64")
    assert data.n_train == 38
    np.testing.assert_array_equal(data.x_train, x[data.train_index])
    with pytest.raises(DataError, match="only 38 training"):
        load_dataset(with_(config, drop_invalid=True, train_size=40))


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"train_size": 41}, DataError, "train_size=41, but there are only 40"),
        ({"test_size": 11}, DataError, "test_size=11, but there are only 10"),
        ({"train_size": 1}, DataError, "subset data.train_size=1"),
        ({"downsample": 3}, ConfigError, "downsample=3"),
        ({"balanced": True, "labels": "regression"}, ConfigError, "balanced"),
        ({"subset_seed": -1}, ConfigError, "subset_seed"),
    ],
)
def test_contradictions_are_refused(config, changes, error, text):
    with pytest.raises(error, match=text):
        load_dataset(with_(config, **changes))


def test_dtype(config):
    assert load_dataset(config).x_train.dtype == np.float32
    assert load_dataset(config, dtype="float64").x_test.dtype == np.float64
    with pytest.raises(ConfigError, match="float16"):
        load_dataset(config, dtype="float16")


def test_float32_overflow_of_prepared_images_is_named(tmp_path):
    x = np.ones((40, 2, 2, 1))
    x[0] = 1e60
    config = with_(save(tmp_path / "o.npz", x_train=x, x_test=x[:10]), standardize="none")
    assert np.isfinite(load_dataset(config, dtype="float64").x_train).all()
    with pytest.raises(DataError, match="overflow float32"):
        load_dataset(config)


def test_regression(tmp_path):
    y = np.linspace(0, 1, 40)
    config = with_(save(tmp_path / "r.npz", y_train=y, y_test=y[:10]), labels="regression")
    data = load_dataset(config)
    assert data.labels_train is None
    np.testing.assert_array_equal(data.y_train[:, 0], y[data.train_index])


@pytest.mark.parametrize("size", [(32, 32), (7, 12), (3, 4)], ids=str)
def test_channels_first_equal_the_transposed_arrays_to_the_last_bit(tmp_path, size):
    rng = np.random.default_rng(3)
    first = {f"x_{part}": rng.random((n, 3, *size)) for part, n in (("train", 40), ("test", 10))}
    last = {name: x.transpose(0, 2, 3, 1) for name, x in first.items()}
    one = load_dataset(with_(save(tmp_path / "first.npz", **first), layout="NCHW"))
    for layout in (None, "NHWC"):
        other = load_dataset(with_(save(tmp_path / "last.npz", **last), layout=layout))
        assert one.fingerprint == other.fingerprint
        for name in ("x_train", "x_test", "y_train", "labels_test"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_a_shape_of_another_layout_is_taken_if_told_so(tmp_path):
    rng = np.random.default_rng(3)
    config = save(tmp_path / "a.npz", x_train=rng.random((40, 3, 8, 8)), x_test=rng.random((10, 3, 8, 8)))
    with pytest.raises(DataError, match=r"data\.layout=NCHW if it is"):
        load_dataset(config)
    assert load_dataset(with_(config, layout="NHWC")).x_train.shape == (40, 3, 8, 8)
    assert load_dataset(with_(config, layout="NCHW")).x_train.shape == (40, 8, 8, 3)
    gray = save(tmp_path / "b.npz", x_train=rng.random((40, 64, 4)), x_test=rng.random((10, 64, 4)))
    with pytest.raises(DataError, match=r"set data\.layout=NHWC if they have"):
        load_dataset(gray)
    for layout in ("NHWC", "NCHW"):
        assert load_dataset(with_(gray, layout=layout)).x_train.shape == (40, 64, 4, 1)


def test_other_kinds_know_their_layout():
    data = load_dataset(DataConfig(kind="synthetic", shape=(2, 9, 8), n_train=20, n_test=4))
    assert data.x_train.shape == (20, 2, 9, 8)


def test_what_was_left_out_and_what_is_missing_is_noted(tmp_path):
    x = np.random.default_rng(0).random((40, 4, 4, 3))
    x[3, 0, 0, 0] = np.nan
    config = save(tmp_path / "a.npz", x_train=x, x_test=x[10:20], y_test=np.arange(10) % 2)
    assert load_dataset(with_(config, drop_invalid=True)).notes == (
        "dropped 1 of 40 images in x_train with NaN or infinite values (rows 3)",
        "classes without test points: 2, 3. Their accuracy is unknown",
    )


@pytest.mark.parametrize("names", [np.array("ab"), np.array(["a", "b", "c", "a"]), np.array([["a", "b", "c", "d"]])])
def test_class_names_name_each_class_once(tmp_path, names):
    with pytest.raises(DataError, match="one name per class"):
        load_dataset(save(tmp_path / "a.npz", class_names=names))


def test_class_names_may_be_bytes(tmp_path):
    assert load_dataset(save(tmp_path / "a.npz", class_names=np.array([b"a", b"b", b"c", b"d"]))).class_names == tuple(
        "abcd"
    )
