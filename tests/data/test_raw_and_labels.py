from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ntkpipe as nk
from ntkpipe.data.labels import class_notes, encode_labels, make_targets
from ntkpipe.data.raw import RawImages, checked
from ntkpipe.errors import ConfigError, DataError

RNG = np.random.default_rng(1)


def raw(**changes):
    rng = np.random.default_rng(0)
    fields = {
        "x_train": rng.random((6, 4, 4, 3)),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": rng.random((3, 4, 4, 3)),
        "y_test": np.array([0, 1, 2]),
    }
    return RawImages(**{**fields, **changes})


@pytest.mark.parametrize(
    ("shape", "expected"), [((5, 4, 3, 2), (4, 3, 2)), ((5, 4, 3), (4, 3, 1)), ((5, 7), (1, 1, 7))]
)
def test_layouts(shape, expected):
    y = np.arange(5)
    good = checked(RawImages(np.zeros(shape), y, np.zeros(shape), y), drop_invalid=False)
    assert good.x_train.shape[1:] == good.x_test.shape[1:] == expected
    assert good.index_train is not None
    assert good.index_train.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"x_test": np.zeros((3, 4, 5, 3))}, "test images 4 x 5 x 3"),
        ({"x_test": np.zeros((3, 4, 4, 3), np.uint8)}, "same dtype"),
        ({"x_train": np.zeros((6, 4, 4, 3), np.int64)}, "int64"),
        ({"x_train": np.zeros((6, 4, 4, 3), np.uint16)}, "uint16"),
        ({"x_train": np.zeros((6, 4, 4, 3), complex)}, "complex"),
        ({"x_train": np.zeros((6, 4, 4, 3), bool)}, "bool"),
        ({"x_train": np.array([["a", "b"]])}, "pixels must be"),
        ({"x_train": np.zeros(6)}, "must be \\(n, height, width, channels\\)"),
        ({"x_train": np.zeros((6, 1, 1, 4, 4, 3))}, "has shape"),
        ({"x_train": np.zeros((0, 4, 4, 3)), "y_train": np.zeros(0, int)}, "x_train is empty"),
        ({"y_train": np.arange(5)}, "y_train has 5 entries for 6 images"),
        ({"y_test": np.array(3)}, "y_test has 1 entries for 3 images"),
        ({"x_train": np.arange(6), "y_train": np.zeros((6, 4, 4, 3))}, "may be swapped"),
        ({"x_test": np.zeros((0, 4, 4, 3)), "y_test": np.zeros(0, int)}, "x_test is empty"),
        (
            {"x_train": np.zeros((6, 64, 4)), "x_test": np.zeros((3, 64, 4))},
            "64 x 4 pixels: set data.layout=NHWC if they have",
        ),
    ],
)
def test_unusable_arrays_are_refused(changes, text):
    with pytest.raises(DataError, match=text):
        checked(raw(**changes), drop_invalid=False)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_invalid_pixels_are_named_or_dropped(value):
    bad = raw()
    bad.x_train[[1, 4], 2, 3, 0] = value
    bad.x_test[0, 0, 0, 0] = value
    with pytest.raises(DataError, match=r"2 of 6 images in x_train .*\(rows 1, 4\).*drop_invalid"):
        checked(bad, drop_invalid=False)
    good = checked(bad, drop_invalid=True)
    assert [note[:30] for note in good.notes] == ["dropped 2 of 6 images in x_tra", "dropped 1 of 3 images in x_tes"]
    assert good.index_train is not None
    assert good.index_test is not None
    assert good.index_train.tolist() == [0, 2, 3, 5]
    assert good.y_train.tolist() == [0, 2, 0, 2]
    assert good.index_test.tolist() == [1, 2]
    assert np.isfinite(good.x_train).all()
    bad.x_test[:] = value
    with pytest.raises(DataError, match="leaves no rows"):
        checked(bad, drop_invalid=True)


def test_byte_order_and_strides_do_not_survive():
    swapped = raw(x_train=raw().x_train.astype(">f8")[::-1][::-1], x_test=raw().x_test)
    good = checked(swapped, drop_invalid=False)
    assert good.x_train.dtype.isnative
    assert good.x_train.flags.c_contiguous
    np.testing.assert_array_equal(good.x_train, raw().x_train)


def test_channels_first_is_asked_about():
    x = RNG.random((4, 3, 8, 6))
    given = RawImages(x, np.arange(4), x, np.arange(4))
    with pytest.raises(DataError, match=r"x_train .*\(n, channels, height, width\): set data\.layout=NCHW if it is"):
        checked(given, drop_invalid=False)
    first = checked(given, drop_invalid=False, layout="NCHW").x_train
    np.testing.assert_array_equal(first, x.transpose(0, 2, 3, 1))
    assert first.flags.c_contiguous
    assert checked(given, drop_invalid=False, layout="NHWC").x_train.shape == x.shape


@pytest.mark.parametrize("below", [(1.0, 255.0), (255.0, 1.0)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pixels_of_two_scales_are_refused(below, dtype):
    scaled = raw()
    changed = {
        f"x_{part}": (getattr(scaled, f"x_{part}") * by).astype(dtype)
        for part, by in zip(("train", "test"), below, strict=True)
    }
    with pytest.raises(DataError, match="a factor of about 255"):
        checked(raw(**changed), drop_invalid=False)


@pytest.mark.parametrize("scale", [1e-300, 0.0, 0.5, 3.0, 30.0, 1e4, 1e300])
def test_other_scales_are_none_of_our_business(scale):
    checked(raw(x_test=raw().x_test * scale), drop_invalid=False)


def test_heavy_tails_are_no_other_scale():
    x = RNG.standard_cauchy((400, 30))
    y = np.arange(400)
    for k in range(100):
        train, test = x[k : k + 200], x[k + 200 : k + 300]
        checked(RawImages(train, y[:200], test, y[:100]), drop_invalid=False)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 12), st.integers(1, 40), st.integers(0, 100))
def test_one_hot_rows(classes, n, seed):
    labels = np.random.default_rng(seed).integers(0, classes, n)
    centered, half = encode_labels(labels, classes, "centered"), encode_labels(labels, classes, "half")
    assert centered.dtype == half.dtype == np.float64
    # A row has `classes` entries of size at most 1: each addition rounds by at most half an ulp of 1.
    assert np.abs(centered.sum(axis=1)).max() <= classes * np.finfo(float).eps
    assert np.array_equal(centered.argmax(axis=1), labels)
    assert set(np.unique(half)) == {-0.5, 0.5}
    np.testing.assert_array_equal(half.sum(axis=1), 1 - classes / 2)


def test_unknown_coding():
    with pytest.raises(ConfigError, match="half"):
        encode_labels(np.array([0]), 2, "plain")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"y_train": np.array([0, 1, -1, 0, 1, 2])}, "negative label -1 at row 2"),
        ({"y_train": np.array([0, 1, 99, 0, 1, 2])}, "label 99 but no label 3"),
        ({"y_test": np.array([0, 1, 3])}, r"label 3 at row 2 .*0\.\.2"),
        ({"y_train": np.array([0, 1, 2, 0, 1, 3]), "class_names": ("a", "b", "c")}, r"label 3 at row 5"),
        ({"y_train": np.array([0, 1, 2, 0, 1, np.nan])}, r"1 labels are NaN or infinite \(first at row 5\)"),
        ({"y_train": np.array([0, 1, 2, 0, 1, 2.5])}, "data.labels=regression for real targets"),
        ({"y_train": np.array([1, 2, 3, 1, 2, 3])}, r"1\.\.3, without label 0: subtract 1"),
        ({"y_train": 2 * np.eye(6, dtype=int)}, "one-hot rows"),
        ({"y_train": np.array(list("abcabc")), "y_test": np.array(list("abd"))}, "holds 'd' at row 2"),
        ({"y_train": np.array(["a", None, "b", "a", "b", "a"], object)}, "no label at row 1"),
        ({"y_train": np.array(["a", 1, "b", "a", "b", "a"], object)}, "labels of one kind"),
        ({"y_train": np.zeros(6, int), "y_test": np.zeros(3, int)}, "same label"),
        ({"y_train": np.array([0, 1, 2, 0, 1, 2**64 - 1], np.uint64)}, "0"),
    ],
)
def test_bad_labels_are_refused(changes, text):
    with pytest.raises(DataError, match=text):
        make_targets(raw(**changes), "centered")


@pytest.mark.parametrize(
    ("train", "test", "names"),
    [
        (np.array(list("bcabca")), np.array(list("bca")), ("a", "b", "c")),
        (np.array(list("bcabca"), "S"), np.array(list("bca"), "S"), ("a", "b", "c")),
        (np.array(list("bcabca"), object), np.array(list("bca"), object), ("a", "b", "c")),
        (np.array([1, 2, 0, 1, 2, 0.0]), np.array([1, 2, 0.0]), ("0", "1", "2")),
        (np.array([[1], [2], [0], [1], [2], [0]]), np.array([1, 2, 0]), ("0", "1", "2")),
        (np.eye(3)[[1, 2, 0, 1, 2, 0]], np.eye(3, dtype=bool)[[1, 2, 0]], ("0", "1", "2")),
    ],
)
def test_labels_may_have_many_forms(train, test, names):
    targets = make_targets(raw(y_train=train, y_test=test), "centered")
    assert targets.labels_train is not None
    assert targets.labels_train.tolist() == [1, 2, 0, 1, 2, 0]
    assert targets.labels_test is not None
    assert targets.labels_test.tolist() == [1, 2, 0]
    assert targets.class_names == names


def test_truth_values_are_two_classes():
    y = np.array([True, False, True, False, True, True])
    targets = make_targets(raw(y_train=y, y_test=y[:3]), "centered")
    assert targets.class_names == ("False", "True")
    np.testing.assert_array_equal(targets.labels_train, y.astype(int))


def test_nobody_need_know_the_labels_of_test_points():
    targets = make_targets(raw(y_test=None), "centered")
    assert targets.labels_test is None
    assert targets.y_test.shape == (3, 3)
    assert np.isnan(targets.y_test).all()
    assert np.isnan(make_targets(raw(y_train=np.linspace(0, 1, 6), y_test=None), "regression").y_test).all()


def test_regression_targets_may_be_standardised():
    y = np.array([[1.0, 5.0], [2.0, 5.0], [4.0, 5.0], [1.0, 5.0], [0.0, 5.0], [4.0, 5.0]])
    targets = make_targets(raw(y_train=y, y_test=y[:3]), "regression", "standardize")
    assert targets.mean is not None
    assert targets.scale is not None
    np.testing.assert_allclose(targets.mean, [2.0, 5.0])
    np.testing.assert_allclose(targets.scale, [y[:, 0].std(), 1.0])
    np.testing.assert_allclose(targets.y_train * targets.scale + targets.mean, y)
    np.testing.assert_array_equal(targets.y_test, y[:3])


def test_named_classes_may_lack_images():
    targets = make_targets(raw(class_names=("a", "b", "c", "d")), "centered")
    assert targets.class_names == ("a", "b", "c", "d")
    assert targets.y_train.shape == (6, 4)


def test_classes_that_one_set_lacks_are_told():
    names = tuple("abcdefgh")
    learnt = class_notes(np.array([0, 1, 2, 3, 4, 5, 6]), np.array([0, 0, 7]), names)
    assert learnt == (
        "1 of 3 test points belong to classes without training points (h) and cannot be predicted correctly",
        "classes without test points: b, c, d, e, f and 1 more. Their accuracy is unknown",
    )
    assert class_notes(np.array([0, 1]), np.array([1, 0]), names) == ()
    assert class_notes(None, None, names) == ()


def test_column_of_labels_is_accepted():
    targets = make_targets(raw(y_train=np.array([[0], [1], [2], [0], [1], [2]], np.uint8)), "half")
    assert targets.labels_train is not None
    assert targets.labels_train.tolist() == [0, 1, 2, 0, 1, 2]
    assert targets.labels_train.dtype == np.int64


def test_regression_targets_as_given():
    y = np.linspace(-1, 1, 6)
    targets = make_targets(raw(y_train=y, y_test=y[:3]), "regression")
    np.testing.assert_array_equal(targets.y_train[:, 0], y)
    assert targets.labels_train is None
    assert targets.class_names == ("target",)
    with pytest.raises(DataError, match="first at row 4"):
        make_targets(raw(y_train=np.where(np.arange(6) == 4, np.nan, y), y_test=y[:3]), "regression")
    with pytest.raises(DataError, match="2 targets per image and y_test 1"):
        make_targets(raw(y_train=np.stack([y, y], axis=1), y_test=y[:3]), "regression")
    with pytest.raises(DataError, match="real numbers"):
        make_targets(raw(y_train=np.array(list("abcabc")), y_test=y[:3]), "regression")


def test_floats_of_a_data_set_are_targets_unless_they_may_be_classes():
    x = np.random.default_rng(0).standard_normal((12, 3))
    whole = np.arange(12) % 3 * 1.0
    with pytest.raises(DataError, match="3 whole numbers, which may be classes or real targets"):
        nk.Dataset(x, whole, x)
    assert nk.Dataset(x, whole, x, labels="regression").targets.shape == (12, 1)
    assert nk.Dataset(x, whole, x, labels="centered").targets.shape == (12, 3)
    assert nk.Dataset(x, whole.astype(int), x).targets.shape == (12, 3)
    for real in (whole + 0.5, np.arange(12.0)):  # no whole numbers, and a value of its own for each point
        assert nk.Dataset(x, real, x).targets.shape == (12, 1)
