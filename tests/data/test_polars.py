"""Frames and series of polars are read as those of pandas."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

import ntkpipe as nk
from ntkpipe.data.columns import Encoding
from ntkpipe.errors import DataError

pl = pytest.importorskip("polars")


def frames(n=40, seed=0):
    """The same table of both libraries."""
    rng = np.random.default_rng(seed)
    columns = {
        "age": rng.integers(20, 70, n),
        "income": rng.normal(3e4, 1e4, n),
        "city": rng.choice(["Bern", "Oslo", "Rome"], n),
        "member": rng.random(n) < 0.5,
        "size": rng.choice(["s", "m", "l"], n),
    }
    of_pandas = pd.DataFrame(columns)
    of_pandas["size"] = pd.Categorical(of_pandas["size"], ["s", "m", "l"])
    return of_pandas, pl.DataFrame(columns).with_columns(pl.col("size").cast(pl.Enum(["s", "m", "l"])))


def targets(n=40):
    return np.random.default_rng(1).normal(5.0, 2.0, n)


def prepared(x, y, **settings):
    return nk.Dataset(x, y, test_fraction=0.25, **settings).prepared("float64")


@pytest.mark.parametrize("kind", [None, "Categorical", "String"])
def test_columns_of_every_kind(kind):
    of_pandas, of_polars = frames()
    if kind is not None:
        of_polars = of_polars.with_columns(pl.col("size").cast(getattr(pl, kind)))
        of_pandas["size"] = of_pandas["size"].astype(str)
    a, b = prepared(of_pandas, targets()), prepared(of_polars, pl.Series("price", targets()))
    features = [Encoding.from_dict(one.preprocessing["encoding"]).features for one in (a, b)]
    assert sorted(features[0]) == sorted(features[1])
    order = [features[1].index(name) for name in features[0]]
    np.testing.assert_array_equal(a.x_train, b.x_train[..., order])
    np.testing.assert_array_equal(a.y_train, b.y_train)
    assert b.class_names == ("price",)


def test_missing_entries():
    of_pandas, of_polars = frames()
    of_pandas.loc[3, "income"] = np.nan
    of_pandas["city"] = of_pandas["city"].astype(object)
    of_pandas.loc[5, "city"] = None
    rows = pl.int_range(pl.len())
    of_polars = of_polars.with_columns(
        pl.when(rows == 3).then(None).otherwise(pl.col("income")).alias("income"),
        pl.when(rows == 5).then(None).otherwise(pl.col("city")).alias("city"),
    )
    for x in (of_pandas, of_polars):
        with pytest.raises(DataError, match="missing"):
            nk.Dataset(x, targets())
    for missing in ("drop", "mean"):
        a, b = (prepared(x, targets(), missing=missing) for x in (of_pandas, of_polars))
        assert a.x_train.shape == b.x_train.shape
        np.testing.assert_allclose(a.x_train[..., :2], b.x_train[..., :2], atol=1e-12)
    nan = of_polars.with_columns(pl.col("income").fill_null(float("nan")), pl.col("city").fill_null("Rome"))
    with pytest.raises(DataError, match=re.escape("row 3")):
        nk.Dataset(nan, targets())


@pytest.mark.parametrize("cast", ["String", "Categorical", "Enum", "Boolean", "Int64", "Float64"])
def test_labels_of_every_kind(cast):
    of_polars = frames()[1]
    numbers = np.arange(40) % 2
    y = pl.Series("kind", np.where(numbers == 1, "yes", "no"))
    kinds = {"Boolean": pl.Series(numbers == 1), "Int64": pl.Series(numbers), "Float64": pl.Series(numbers * 1.0)}
    y = kinds[cast] if cast in kinds else y.cast(pl.Enum(["no", "yes"]) if cast == "Enum" else getattr(pl, cast))
    settings = {"labels": "centered"}
    names = ("no", "yes") if cast in ("String", "Categorical", "Enum") else None
    for x in (of_polars, of_polars.select("age", "income").to_numpy()):
        made = nk.Dataset(x, y, test_fraction=0.25, **settings)
        assert names is None or made.class_names == names
        np.testing.assert_array_equal(made.prepared().labels_train, numbers[made.prepared().train_index])


def test_a_missing_label_is_named():
    y = pl.Series(["yes", "no", None, *["yes"] * 37])
    for x in (frames()[1], frames()[1].select("age", "income").to_numpy()):
        with pytest.raises(DataError, match=r"row 2|missing"):
            nk.Dataset(x, y, test_fraction=0.25)


def test_predictions_of_new_points():
    x, y = frames()[1], pl.Series("price", targets())
    data = nk.Dataset(x, y, test_fraction=0.25)
    gram = nk.Gram(nk.zoo.fcn(depth=1), data)
    gram.compute()
    solution = nk.Eigh().solve(gram.train("nngp"), data.targets, ridges=0.1)
    made = solution.predict(x.head(3), times=nk.inf)
    np.testing.assert_allclose(made.mean, solution.predict(frames()[0].head(3), times=nk.inf).mean, rtol=1e-6)


def test_estimators_and_short_form_take_frames():
    from ntkpipe.sklearn import NTKClassifier

    x, y = frames()[1].select("age", "income"), pl.Series(np.arange(40) % 2)
    x = x.with_columns(pl.all() - pl.all().mean()).with_columns(pl.all() / pl.all().std())
    assert NTKClassifier(ridge=1e-2).fit(x, y).predict(x).shape == (40,)
    made = nk.predict_in_memory(nk.zoo.fcn(depth=1), x, y, x.head(5), times=10)
    assert made.mean.shape == (1, 5, 2)
