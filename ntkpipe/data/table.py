"""Reads tables with a column per feature: `data=table data.path=FILE.csv data.target=COLUMN`, and frames in Python."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ntkpipe.config import DataConfig
from ntkpipe.data import columns
from ntkpipe.data.class_labels import is_one_hot
from ntkpipe.data.columns import Column, Encoding
from ntkpipe.data.raw import RawImages
from ntkpipe.data.splits import drawn_test_rows
from ntkpipe.data.tables import as_table, read_table
from ntkpipe.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pyarrow as pa

_log = logging.getLogger(__name__)

TEST_FRACTION = 0.2
"""Default share of test rows."""

# A target of whole numbers is taken as classes if it has at most this many distinct values, repeated on average.
_MOST_CLASSES = 20
_TRAIN, _TEST = ("train", "training"), ("test", "testing")


class _Rows(NamedTuple):
    """Some rows of a table, and the table's name."""

    table: pa.Table
    rows: np.ndarray
    what: str


def load(config: DataConfig) -> RawImages:
    """Load features and targets of the table `config.path`.

    Test rows come from `config.test_path` or from the column `config.split`; otherwise they are drawn.

    Raises:
        DataError: if an entry cannot be used. The text names its row and column.
    """
    table = read_table(str(config.path), "data.path")
    test = None if config.test_path is None else read_table(config.test_path, "data.test_path")
    return from_tables(table, test, config)


def from_frames(
    x: Any, y: Any, x_test: Any, y_test: Any, config: DataConfig, class_names: tuple[str, ...] | None = None
) -> tuple[RawImages, DataConfig]:
    """Return features and targets of frames, and the configuration with the names of the target columns.

    Args:
        x: training points, a frame of pandas, polars or pyarrow.
        y: targets of the training points, a series, a frame or an array.
        x_test: test points; None draws them from `x`.
        y_test: targets of the test points; None if unknown.
        config: the configuration, whose `target` is replaced.
        class_names: names of the classes 0, 1, ...; None takes the names of one-hot columns, or those in the targets.
    """
    if config.labels != "regression":
        y, of_columns = _from_one_hot(y)
        y_test = None if y_test is None else _from_one_hot(y_test)[0]
        class_names = class_names or of_columns
    if class_names is not None:
        y = _named(y, class_names, "y_train")
        y_test = None if y_test is None else _named(y_test, class_names, "y_test")
    table, names = _joined(as_table(x, "x_train"), y, "y_train")
    test = None
    if x_test is not None:
        test = as_table(x_test, "x_test")
        test = test if y_test is None else _joined(test, y_test, "y_test", names)[0]
    config = replace(config, target=names)
    return from_tables(table, test, config, what="x_train", what_test="x_test", class_names=class_names), config


def _from_one_hot(y: Any) -> tuple[Any, tuple[str, ...] | None]:
    """Return the numbers of the classes of one-hot rows, and the names of the columns; other targets unchanged."""
    values = np.asarray(y)
    if not is_one_hot(values):
        return y, None
    names = getattr(y, "columns", range(values.shape[1]))
    return values.argmax(axis=1), tuple(str(one) for one in names)


def _named(y: Any, class_names: tuple[str, ...], what: str) -> Any:
    """Return labels with the names of their classes instead of numbers or truth values; missing labels stay missing."""
    import pandas as pd

    values = np.asarray(y)
    values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if values.ndim != 1 or values.dtype.kind not in "biuf":
        return y
    numbers = values.astype(np.float64)
    there = ~np.isnan(numbers)
    strange = np.flatnonzero(there & ~np.isin(numbers, np.arange(len(class_names))))
    if strange.size:
        raise DataError(
            f"{what} holds {values[strange[0]]} at row {strange[0]} ({strange.size} such rows), but the "
            f"{len(class_names)} class_names are those of the labels 0 to {len(class_names) - 1}: correct the labels or "
            "the names"
        )
    made = [class_names[int(one)] if known else None for one, known in zip(numbers, there, strict=True)]
    return pd.Series(made, name=getattr(y, "name", None), dtype=object)


def _joined(table: pa.Table, y: Any, name: str, names: Sequence[str] = ()) -> tuple[pa.Table, tuple[str, ...]]:
    """Return the table with the targets as further columns, and the names of these columns."""
    import pandas as pd
    import pyarrow as pa

    y = y.to_pandas() if hasattr(y, "to_arrow") or isinstance(y, pa.Table) else y
    frame = y if isinstance(y, pd.DataFrame) else pd.DataFrame(y)
    if isinstance(y, pd.Series) and y.name is not None:
        frame.columns = [str(y.name)]
    elif not isinstance(y, pd.DataFrame):
        frame.columns = ["target"] if frame.shape[1] == 1 else [f"target_{k}" for k in range(frame.shape[1])]
    found = tuple(names or (str(one) for one in frame.columns))
    if len(frame) != table.num_rows or len(found) != frame.shape[1]:
        raise DataError(f"{name} has shape {frame.shape} for {table.num_rows} points: give a row for each")
    if clash := sorted(set(found) & set(table.column_names)):
        raise DataError(f"{name} and the points both have a column {clash[0]!r}: rename one of them")
    frame = frame.set_axis(found, axis=1)
    made = as_table(frame, name)
    for column in found:
        table = table.append_column(column, made.column(column))
    return table, found


def from_tables(
    table: pa.Table,
    test: pa.Table | None,
    config: DataConfig,
    *,
    what: str = "data.path",
    what_test: str = "data.test_path",
    class_names: tuple[str, ...] | None = None,
) -> RawImages:
    """Return features and targets of one table, or of separate training and test tables.

    Names of the classes are those of the training rows, unless `class_names` gives them.
    """
    if what == "data.path":
        what, what_test = str(config.path), str(config.test_path)
    targets = tuple(_known(name, table, "data.target", what) for name in config.target)
    if config.split is not None:
        _known(config.split, table, "data.split", what)
    regression = _is_regression(table, targets, config)
    names = _feature_names(table, targets, config, what)
    missing = config.missing or "refuse"
    notes: list[str] = []
    all_rows = _with_targets(_Rows(table, np.arange(table.num_rows), what), targets, missing, notes)
    if test is not None:
        train, held = all_rows, _Rows(test, np.arange(test.num_rows), what_test)
    elif config.split is not None:
        train, held = _by_column(table, config.split, what)
        train = _with_targets(train, targets, missing, notes)
    else:
        train, held = _drawn(all_rows, targets, config, regression=regression)
    encoding, found = columns.fit(table, names, train.rows, missing, what)
    notes += found
    x_train, train_rows, more = encoding.apply(train.table, train.rows, train.what)
    x_test, test_rows, other = encoding.apply(held.table, held.rows, held.what)
    notes += [*more, *other]
    y_train = _targets(_Rows(train.table, train_rows, train.what), targets, regression=regression)
    y_test, test_rows, keep = _test_targets(
        _Rows(held.table, test_rows, held.what), targets, missing, regression=regression
    )
    names_of_classes = None if regression else class_names or _class_names(table, targets[0], train_rows)
    if names_of_classes is not None and class_names is None and y_test is not None:
        _require_known(y_test, names_of_classes, held._replace(rows=test_rows))
    _log.info(
        "table: %d features of %d columns; %s",
        len(encoding.features),
        len(encoding.columns),
        _told(targets, y_train, regression=regression),
    )
    return RawImages(
        x_train,
        y_train,
        x_test[keep],
        y_test,
        class_names=names_of_classes,
        index_train=train_rows,
        index_test=test_rows,
        notes=tuple(dict.fromkeys(notes)),
        target_names=targets if regression else None,
        coding="regression" if regression else None,
        fixed=encoding.fixed,
        encoding=encoding.to_dict(),
    )


def encoded(frame: Any, encoding: dict[str, Any], what: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Encode new points like the training rows; returns features (p, 1, 1, d), their row numbers, and notes."""
    table = as_table(frame, what)
    x, rows, notes = Encoding.from_dict(encoding).apply(table, np.arange(table.num_rows), what)
    return x[:, None, None, :], rows, notes


def _known(name: str, table: pa.Table, setting: str, what: str) -> str:
    if name in table.column_names:
        return name
    close = difflib.get_close_matches(name, table.column_names, 1, 0.5)
    listed = ", ".join(table.column_names[:20]) + (", ..." if table.num_columns > 20 else "")
    hint = f": did you mean {close[0]!r}?" if close else "."
    raise DataError(f"{setting}={name}: {what} has no such column{hint} Its columns: {listed}")


def _feature_names(table: pa.Table, targets: Sequence[str], config: DataConfig, what: str) -> list[str]:
    aside = {*targets, *([config.split] if config.split else [])}
    if not config.features:
        return [name for name in table.column_names if name not in aside]
    names = [_known(name, table, "data.features", what) for name in config.features]
    if both := [name for name in names if name in aside]:
        raise ConfigError(f"data.features names {both[0]}, which is the target or the split: leave it out")
    return names


def _is_regression(table: pa.Table, targets: Sequence[str], config: DataConfig) -> bool:
    """Return whether the targets are real numbers instead of classes."""
    if config.labels is not None:
        if len(targets) > 1 and config.labels != "regression":
            raise ConfigError(
                f"data.labels={config.labels} needs one column of classes, but data.target names {len(targets)}: name "
                "one"
            )
        return config.labels == "regression"
    if len(targets) > 1:
        return True
    column = table.column(targets[0])
    if columns.is_category(column.type, targets[0], "the table"):
        return False
    values = column.cast("float64", safe=False).to_numpy()
    values = values[np.isfinite(values)]
    distinct = np.unique(values)
    return bool(
        len(distinct) > _MOST_CLASSES or len(values) < 2 * len(distinct) or (distinct != np.round(distinct)).any()
    )


def _told(targets: Sequence[str], y: np.ndarray, *, regression: bool) -> str:
    listed = ", ".join(map(repr, targets))
    if len(targets) > 1:
        return f"{listed} are taken as numbers for regression"
    if regression:
        return f"{listed} is taken as numbers for regression (set data.labels=centered for classes)"
    return f"{listed} is taken as {len(np.unique(y))} classes (set data.labels=regression for numbers)"


def _drawn(all_rows: _Rows, targets: Sequence[str], config: DataConfig, *, regression: bool) -> tuple[_Rows, _Rows]:
    fraction = TEST_FRACTION if config.test_fraction is None else config.test_fraction
    rows = all_rows.rows
    labels = None if regression else _targets(all_rows, targets, regression=False)
    held = drawn_test_rows(len(rows), fraction, seed=config.subset_seed, labels=labels)
    _log.info(
        "table: %d of %d rows are kept for testing, drawn with data.subset_seed=%d%s (data.test_fraction, data.split or data.test_path "
        "choose others)",
        len(held),
        len(rows),
        config.subset_seed,
        "" if regression else ", every class in proportion",
    )
    return all_rows._replace(rows=np.delete(rows, held)), all_rows._replace(rows=rows[held])


def _by_column(table: pa.Table, name: str, what: str) -> tuple[_Rows, _Rows]:
    words = [str(one).strip().lower() for one in table.column(name).to_pylist()]
    train = np.array([row for row, word in enumerate(words) if word in _TRAIN], dtype=np.int64)
    test = np.array([row for row, word in enumerate(words) if word in _TEST], dtype=np.int64)
    if len(train) + len(test) < len(words):
        row = next(row for row, word in enumerate(words) if word not in (*_TRAIN, *_TEST))
        raise DataError(
            f"column {name!r} of {what} holds {words[row]!r} in row {row}: data.split needs train or test in each row"
        )
    if not len(train) or not len(test):
        raise DataError(
            f"column {name!r} of {what} has {len(train)} training and {len(test)} test rows: each needs at least one"
        )
    return _Rows(table, train, what), _Rows(table, test, what)


def _absent(part: _Rows, name: str) -> np.ndarray:
    """Return a mask (m,) bool of the rows without an entry."""
    column = part.table.column(name)
    kind = None if not columns.is_category(column.type, name, part.what) else ()
    return columns.entries(part.table, Column(name, kind, None), part.rows, part.what)[1]


def _with_targets(part: _Rows, targets: Sequence[str], missing: str, notes: list[str]) -> _Rows:
    """Return the rows that have targets. Rows without a target are an error, unless they may be dropped."""
    for name in targets:
        gone = _absent(part, name)
        if gone.any() and missing != "drop":
            raise DataError(
                f"{part.what} has no target in row {part.rows[gone][0]}, column {name!r} ({gone.sum()} such rows; the first row of "
                "data is 0): fill it in, remove the row, or set data.missing=drop"
            )
        if gone.any():
            notes.append(f"{part.what}: left out {gone.sum()} rows without {name} (data.missing=drop)")
            part = part._replace(rows=part.rows[~gone])
    return part


def _targets(part: _Rows, targets: Sequence[str], *, regression: bool) -> np.ndarray:
    """Return targets (m, c) as numbers, or (m,) as names of classes."""
    if not regression:
        return np.array(_names(part.table, targets[0])[part.rows].tolist(), dtype=np.str_)
    made = [columns.entries(part.table, Column(name, None, None), part.rows, part.what)[0] for name in targets]
    return np.stack(made, axis=1)


def _test_targets(
    part: _Rows, targets: Sequence[str], missing: str, *, regression: bool
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """Return targets of test rows (None if all are unknown), the remaining row numbers, and a mask of these rows."""
    keep = np.ones(len(part.rows), dtype=bool)
    if any(name not in part.table.column_names for name in targets):
        return None, part.rows, keep
    if all(_absent(part, name).all() for name in targets):
        return None, part.rows, keep
    left = _with_targets(part, targets, missing, [])
    keep = np.isin(part.rows, left.rows)
    return _targets(left, targets, regression=regression), left.rows, keep


def _require_known(labels: np.ndarray, names: tuple[str, ...], held: _Rows) -> None:
    """Refuse test rows of a class without training rows. The text names the row in the table."""
    strange = np.flatnonzero(~np.isin(labels, names))
    if strange.size:
        raise DataError(
            f"row {held.rows[strange[0]]} of {held.what} is a test row of the class {str(labels[strange[0]])!r}, which no "
            f"training row has ({strange.size} such rows; the first row of data is 0): correct the label, add training "
            "rows of this class, or remove these rows"
        )


def _names(table: pa.Table, name: str) -> np.ndarray:
    """Return a column of classes as text, with whole numbers without a decimal point."""
    found = table.column(name)
    if not columns.is_category(found.type, name, "the table"):
        values = found.cast("float64", safe=False).to_numpy()
        return np.array(
            [None if np.isnan(v) else f"{v:.0f}" if v == np.round(v) else repr(float(v)) for v in values], dtype=object
        )
    return np.array([None if one is None else str(one) for one in found.to_pylist()], dtype=object)


def _class_names(table: pa.Table, name: str, rows: np.ndarray) -> tuple[str, ...]:
    """Return the classes of the training rows: categories in their order, numbers by value, other names alphabetically."""
    import pyarrow.types as kinds

    found = np.unique(_names(table, name)[rows].astype(np.str_)).tolist()
    if kinds.is_dictionary(table.column(name).type):
        levels = table.column(name).unify_dictionaries().chunk(0).dictionary.to_pylist()
        return tuple(one for one in map(str, levels) if one in set(found))
    if columns.is_category(table.column(name).type, name, "the table"):
        return tuple(found)
    return tuple(sorted(found, key=float))
