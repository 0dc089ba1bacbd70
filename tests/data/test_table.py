from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

import ntkpipe as nk
from ntkpipe.config import DataConfig
from ntkpipe.data.columns import Encoding
from ntkpipe.data.dataset import load_dataset, load_raw
from ntkpipe.data.splits import drawn_test_rows
from ntkpipe.data.tables import read_table
from ntkpipe.errors import ConfigError, DataError


def frame(n=60, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "age": rng.integers(20, 70, n),
            "income": rng.normal(3e4, 1e4, n),
            "city": rng.choice(["Bern", "Oslo", "Rome"], n),
            "member": rng.random(n) < 0.5,
            "kind": np.where(np.arange(n) % 3 == 0, "yes", "no"),
            "price": rng.normal(5.0, 2.0, n),
        }
    )


def config(path, table, **settings):
    if path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False)
    return DataConfig(kind="table", path=str(path), **{"target": ("price",), **settings})


def test_numbers_are_standardised_and_categories_become_features(tmp_path):
    table = frame()
    data = load_dataset(config(tmp_path / "a.csv", table, test_fraction=0.25), dtype="float64")
    assert data.x_train.shape == (45, 1, 1, 2 + 3 + 2 + 2)
    encoding = Encoding.from_dict(data.preprocessing["encoding"])
    assert encoding.features == (
        *("age", "income", "city=Bern", "city=Oslo", "city=Rome", "member=False", "member=True", "kind=no", "kind=yes"),
    )
    x = data.x_train[:, 0, 0]
    np.testing.assert_allclose(x[:, :2].mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(x[:, :2].std(axis=0), 1, atol=1e-12)
    rows = table.iloc[data.train_index]
    np.testing.assert_array_equal(x[:, 2:5], np.stack([rows["city"] == c for c in ("Bern", "Oslo", "Rome")], axis=1))
    np.testing.assert_array_equal(x[:, 6], rows["member"])


def test_every_row_is_in_one_part_and_files_agree(tmp_path):
    table = frame()
    data = load_dataset(config(tmp_path / "a.csv", table))
    other = load_dataset(config(tmp_path / "a.parquet", table))
    assert sorted([*data.train_index, *data.test_index]) == list(range(60))
    assert len(data.test_index) == 12
    np.testing.assert_array_equal(data.x_train, other.x_train)
    assert data.fingerprint == other.fingerprint


def test_real_targets_are_standardised_and_test_targets_stay(tmp_path):
    table = frame()
    data = load_dataset(config(tmp_path / "a.csv", table))
    price = table["price"].to_numpy()
    assert data.labels_train is None
    assert data.class_names == ("price",)
    assert data.mean is not None
    assert data.scale is not None
    np.testing.assert_allclose(data.y_train[:, 0] * data.scale + data.mean, price[data.train_index])
    np.testing.assert_allclose([data.y_train.mean(), data.y_train.std()], [0, 1], atol=1e-12)
    np.testing.assert_array_equal(data.y_test[:, 0], price[data.test_index])
    assert load_dataset(config(tmp_path / "a.csv", table, targets="none")).scale is None


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (np.arange(60) % 3 + 3, ("3", "4", "5")),
        (np.arange(60) % 2 * 1.0, ("0", "1")),
        (np.array(["b", "a"] * 30), ("a", "b")),
        (np.arange(60) % 2 == 0, ("False", "True")),
        (np.arange(60), None),
        (np.arange(60) % 3 + 0.5, None),
    ],
)
def test_what_a_target_is(tmp_path, values, names):
    data = load_dataset(config(tmp_path / "a.csv", frame().assign(price=values)))
    assert (data.labels_train is None) == (names is None)
    if names is not None:
        assert data.class_names == names
        assert data.labels_train is not None
        shown = [names[k] for k in data.labels_train]
        assert shown == [str(v).removesuffix(".0") for v in values[data.train_index]]


def test_the_choice_between_numbers_and_classes_can_be_made(tmp_path):
    table = frame().assign(price=np.arange(60) % 3)
    assert load_dataset(config(tmp_path / "a.csv", table, labels="regression")).labels_train is None
    assert load_dataset(config(tmp_path / "a.csv", table, labels="half")).y_train.max() == 0.5
    assert load_dataset(config(tmp_path / "a.csv", table, targets="standardize")).labels_train is None
    with pytest.raises(ConfigError, match=r"data\.targets=standardize is for real targets"):
        load_dataset(config(tmp_path / "a.csv", table, labels="centered", targets="standardize"))


def test_missing_entries_are_refused_by_row_and_column(tmp_path):
    table = frame()
    table.loc[[7, 9], "income"] = np.nan
    table.loc[11, "city"] = None
    with pytest.raises(DataError, match=r"row 7 .*column 'income' .*data\.missing=drop"):
        load_dataset(config(tmp_path / "a.csv", table))
    dropped = load_dataset(config(tmp_path / "a.csv", table, missing="drop"))
    assert sorted({*range(60)} - {*dropped.train_index, *dropped.test_index}) == [7, 9, 11]
    assert any("left out" in note for note in dropped.notes)
    filled = load_raw(config(tmp_path / "a.csv", table, missing="mean", standardize="none", split=None))
    place = int(np.flatnonzero(np.concatenate([filled.index_train, filled.index_test]) == 7)[0])
    x = np.concatenate([filled.x_train, filled.x_test])[:, 0, 0]
    np.testing.assert_allclose(x[place, 1], table["income"].iloc[np.sort(filled.index_train)].mean())
    with pytest.raises(DataError, match="no target in row 3, column 'price'"):
        load_dataset(config(tmp_path / "b.csv", frame().assign(price=lambda t: t["price"].where(t.index != 3))))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.assign(name=[f"person {k}" for k in range(60)]), "column 'name' .* identify rows"),
        (
            lambda t: t.assign(day=pd.date_range("2020-01-01", periods=60)),
            "column 'day' .* neither numbers nor categories",
        ),
        (
            lambda t: t.assign(age=[*map(str, range(59)), "old"]),
            "column 'age' .* most entries are numbers; row 59 holds 'old'",
        ),
        (lambda t: t.assign(age=[*range(59), np.inf]), "column 'age' .* infinite in row 59"),
        (lambda t: t[["price"]].assign(one=1), "no column that differs"),
        (lambda t: t.rename(columns={"price": "prize"}), r"did you mean 'prize'\?"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, change, text):
    with pytest.raises(DataError, match=text):
        load_dataset(config(tmp_path / "a.parquet", change(frame())))


def test_constant_columns_are_left_out_and_named(tmp_path):
    data = load_dataset(config(tmp_path / "a.csv", frame().assign(one=1, word="x")))
    assert data.x_train.shape[-1] == 9
    assert any("'one', 'word'" in note for note in data.notes)
    numbered = load_dataset(config(tmp_path / "b.csv", frame().assign(row=np.arange(60))))
    assert any("'row' of" in note and "numbers the rows" in note for note in numbered.notes)


def test_test_rows_by_column_and_by_file(tmp_path):
    table = frame().assign(part=["train"] * 40 + ["Test"] * 20)
    data = load_dataset(config(tmp_path / "a.csv", table, split="part"))
    assert sorted(data.test_index) == list(range(40, 60))
    table.loc[5, "part"] = "validation"
    with pytest.raises(DataError, match="holds 'validation' in row 5"):
        load_dataset(config(tmp_path / "b.csv", table, split="part"))
    frame(9, 1).to_csv(tmp_path / "test.csv", index=False)
    data = load_dataset(config(tmp_path / "c.csv", frame(), test_path=str(tmp_path / "test.csv")))
    assert (len(data.x_train), len(data.x_test)) == (60, 9)
    frame(9, 1).drop(columns="price").to_csv(tmp_path / "new.csv", index=False)
    data = load_dataset(config(tmp_path / "c.csv", frame(), test_path=str(tmp_path / "new.csv")))
    assert np.isnan(data.y_test).all()
    with pytest.raises(ConfigError, match="in different ways"):
        DataConfig(kind="table", path="a", target=("b",), split="c", test_fraction=0.5)


def test_levels_that_training_lacks_are_told(tmp_path):
    frame(9, 1).assign(city="Paris").to_csv(tmp_path / "test.csv", index=False)
    data = load_dataset(config(tmp_path / "a.csv", frame(), test_path=str(tmp_path / "test.csv")), dtype="float64")
    assert not data.x_test[..., 2:5].any()
    assert any("'Paris'" in note for note in data.notes)


def test_other_delimiters_and_marks_of_nothing(tmp_path):
    (tmp_path / "a.csv").write_text("\ufeffa;b;c\n1;x;2.5\n?;y;3.5\n", encoding="utf-8")
    table = read_table(str(tmp_path / "a.csv"), "data.path")
    assert table.column_names == ["a", "b", "c"]
    assert table.column("a").to_pylist() == [1, None]
    (tmp_path / "twice.csv").write_text("a,a \n1,2\n")
    with pytest.raises(DataError, match="several columns named 'a'"):
        read_table(str(tmp_path / "twice.csv"), "data.path")
    with pytest.raises(DataError, match="is not a file"):
        read_table(str(tmp_path / "none.csv"), "data.path")


@pytest.mark.parametrize("seed", range(3))
def test_a_draw_keeps_proportions(seed):
    labels = np.random.default_rng(seed).choice(["a", "b", "c"], 101, p=[0.6, 0.3, 0.1])
    held = drawn_test_rows(101, 0.2, seed=seed, labels=labels)
    assert len(held) == 20
    for name in "abc":
        assert abs((labels[held] == name).sum() - 20 / 101 * (labels == name).sum()) < 1
    np.testing.assert_array_equal(held, drawn_test_rows(101, 0.2, seed=seed, labels=labels))
    with pytest.raises(DataError, match="leaves 0 for testing"):
        drawn_test_rows(4, 0.1, seed=0)


def test_frames_and_arrays_from_python():
    table = frame()
    x, y = table.drop(columns="price"), table["price"]
    data = nk.Dataset(x, y, test_fraction=0.25)
    assert (data.n, data.p) == (45, 15)
    assert data.class_names == ("price",)
    assert data.features is not None
    assert data.features[:2] == ("age", "income")
    held = nk.Dataset(x[:50], y[:50], x[50:], y[50:])
    assert (held.n, held.p) == (50, 10)
    categories = pd.Series(pd.Categorical(table["city"], categories=["Rome", "Oslo", "Bern"]))
    assert nk.Dataset(table[["age", "income"]].to_numpy(float), categories).class_names == ("Rome", "Oslo", "Bern")
    two = nk.Dataset(x, table[["price", "income"]].rename(columns={"income": "wage"}))
    assert two.class_names == ("price", "wage")
    with pytest.raises(DataError, match="both have a column 'income'"):
        nk.Dataset(x, table[["price", "income"]])


def test_labels_of_frames_have_the_order_of_their_classes():
    x, numbers = frame().drop(columns="price"), np.arange(60) % 3
    names = np.array(["low", "mid", "high"])
    ordered = pd.Series(pd.Categorical(names[numbers], categories=["low", "mid", "high"]), name="level")
    dummies = pd.get_dummies(ordered)
    targets = np.eye(3)[numbers] - 1 / 3
    for y, given in (
        (names[numbers], names),
        (numbers, names),
        (ordered, None),
        (dummies, None),
        (np.eye(3)[numbers], names),
    ):
        data = nk.Dataset(x, y, x, y, class_names=None if given is None else list(given))
        assert data.class_names == ("low", "mid", "high")
        prepared = data.prepared()
        np.testing.assert_allclose(prepared.y_train, targets[prepared.train_index])
        np.testing.assert_allclose(prepared.y_test, targets[prepared.test_index])
    assert nk.Dataset(x, dummies.astype(float), labels="regression").class_names == ("low", "mid", "high")
    assert not nk.Dataset(x, dummies.astype(float), labels="regression").is_classes
    some = pd.Series(numbers).where(numbers != 1)
    assert nk.Dataset(x, some, class_names=list(names), missing="drop").n == 32
    with pytest.raises(DataError, match=r"y_train holds 2 at row 2 \(20 such rows\), but the 2 class_names"):
        nk.Dataset(x, numbers, class_names=["low", "mid"])
    with pytest.raises(DataError, match="not one of the classes low, mid"):
        nk.Dataset(x, names[numbers], class_names=["low", "mid"])


def test_a_class_that_only_test_rows_have_is_named_with_its_row(tmp_path):
    table = frame().drop(columns="price")
    table["kind"] = np.where(np.arange(60) % 2, "a", "b")
    table.loc[57, "kind"] = "rare"
    table["part"] = np.where(np.arange(60) < 40, "train", "test")
    table.to_csv(tmp_path / "a.csv", index=False)
    where = {"path": tmp_path / "a.csv", "target": "kind", "features": ["age", "city"]}
    with pytest.raises(DataError, match=r"row 57 of .*a.csv is a test row of the class 'rare'.*add training rows"):
        nk.load_dataset("table", split="part", **where)
    # A drawn test set leaves every class a training row.
    data = nk.load_dataset("table", test_fraction=0.5, **where)
    assert (data.p, data.class_names) == (30, ("a", "b", "rare"))
    assert 57 in data.prepared().train_index
    with pytest.raises(DataError, match=r"has no such column\. Its columns"):
        nk.load_dataset("table", path=tmp_path / "a.csv", target="zzz")


def test_settings_that_the_points_do_not_read_are_refused():
    table = frame()
    x, y = table.drop(columns="price"), table["price"]
    flat = table[["age", "income"]].to_numpy(float)
    for make, text in (
        (lambda: nk.Dataset(x, y, layout="NLC"), "layout has no meaning for a frame"),
        (lambda: nk.Dataset(flat, y, missing="mean"), "missing has no meaning for arrays"),
        (lambda: nk.Dataset(flat, y, flat, y, test_fraction=0.3), "test_fraction has no meaning beside x_test"),
        (lambda: nk.Dataset(flat, y.to_numpy(), class_names=["price"]), "class_names names classes"),
        (lambda: nk.load_dataset("digits", missing="mean"), "missing has no meaning for data of kind 'digits'"),
    ):
        with pytest.raises(ConfigError, match=text):
            make()


def test_load_dataset_reads_tables(tmp_path):
    frame().to_csv(tmp_path / "a.csv", index=False)
    data = nk.load_dataset("table", path=tmp_path / "a.csv", target="price", features=["age", "city"])
    assert data.features == ("age", "city=Bern", "city=Oslo", "city=Rome")
    with pytest.raises(ConfigError, match=re.escape("needs data.target=COLUMN")):
        nk.load_dataset("table", path=tmp_path / "a.csv")


def test_arrays_without_test_points_are_divided(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 4)), np.array(["a", "b"])[rng.integers(0, 2, 50)]
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y)
    settings = {"kind": "npz", "path": str(tmp_path / "a.npz")}
    data = load_dataset(DataConfig(**settings, test_fraction=0.2), dtype="float64")
    assert data.class_names == ("a", "b")
    assert sorted([*data.train_index, *data.test_index]) == list(range(50))
    assert len(data.test_index) == 10
    np.savez(tmp_path / "b.npz", x_train=x, y_train=y, x_test=x[:5])
    assert load_dataset(DataConfig(kind="npz", path=str(tmp_path / "b.npz"))).labels_test is None
    with pytest.raises(DataError, match="already has test points"):
        load_dataset(DataConfig(kind="npz", path=str(tmp_path / "b.npz"), test_fraction=0.2))
