"""Encodes table columns as numbers. The encoding is fitted on the training rows and applied to other rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ntkpipe.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

# A text column with more levels than this, and more than half as many levels as rows, identifies rows and is not a
# feature.
_MOST_LEVELS = 50
# If at least this share of a text column reads as numbers, the other entries count as mistakes.
_NUMBERS = 0.5


@dataclass(frozen=True)
class Column:
    """The encoding of one column, fitted on the training rows.

    Args:
        name: name of the column.
        levels: the categories, each of which is a feature of 0 and 1; None for a column of numbers, which is one
            feature.
        fill: means of the features, which replace a missing entry; None if missing entries are not filled in.
    """

    name: str
    levels: tuple[str, ...] | None
    fill: tuple[float, ...] | None

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features of this column."""
        return (self.name,) if self.levels is None else tuple(f"{self.name}={level}" for level in self.levels)


@dataclass(frozen=True)
class Encoding:
    """How the columns of a table become features.

    Args:
        columns: encodings of the columns, in order.
        missing: what happens to missing entries: `refuse`, `drop` (leaves such rows out) or `mean` (fills them in).
    """

    columns: tuple[Column, ...]
    missing: str

    @property
    def features(self) -> tuple[str, ...]:
        """Names of all features, in order."""
        return tuple(name for column in self.columns for name in column.features)

    @property
    def fixed(self) -> np.ndarray:
        """(d,) bool mask of the features of 0 and 1, which standardisation leaves unchanged."""
        return np.array([column.levels is not None for column in self.columns for _ in column.features])

    def apply(self, table: pa.Table, rows: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Return the features of some rows of a table.

        Args:
            table: the table, with all columns of the encoding.
            rows: (m,) row numbers.
            what: name of the table, for messages.

        Returns:
            (k, d) float64 features, the k remaining row numbers, and notes for the user.

        Raises:
            DataError: if an entry is missing, infinite, or not a number in a column of numbers. The text names its
                row and column.
        """
        made, notes = [], []
        gone = np.zeros(len(rows), dtype=bool)
        for column in self.columns:
            if column.name not in table.column_names:
                raise DataError(f"no column {column.name!r} in {what}, but the training rows have it: add it")
            values, missing = entries(table, column, rows, what)
            if missing.any() and self.missing == "refuse":
                raise DataError(_of_missing(what, column.name, rows[missing]))
            block, unseen = _block(column, values)
            if unseen:
                notes.append(
                    f"{what}: column {column.name!r} holds "
                    f"{', '.join(map(repr, unseen[:5]))}{', ...' if len(unseen) > 5 else ''}, which no training row "
                    "has: encoded as none of its levels"
                )
            if self.missing == "mean" and column.fill is not None:
                block[missing] = column.fill
            else:
                gone |= missing
            made.append(block)
        if gone.all():
            raise DataError(
                f"every row of {what} has a missing entry, so data.missing=drop leaves no rows: use data.missing=mean"
            )
        if gone.any():
            notes.append(f"{what}: left out {gone.sum()} of {len(rows)} rows with missing entries (data.missing=drop)")
        return np.concatenate(made, axis=1)[~gone], rows[~gone], notes

    def to_dict(self) -> dict[str, Any]:
        """Return the encoding as plain JSON values."""
        return {"missing": self.missing, "columns": [asdict(column) for column in self.columns]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Encoding:
        """Make an encoding from the values that `to_dict` returned."""
        made = [
            Column(
                one["name"],
                None if one["levels"] is None else tuple(one["levels"]),
                None if one["fill"] is None else tuple(one["fill"]),
            )
            for one in values["columns"]
        ]
        return cls(tuple(made), values["missing"])


def fit(table: pa.Table, names: Sequence[str], rows: np.ndarray, missing: str, what: str) -> tuple[Encoding, list[str]]:
    """Fit an encoding to the training rows; also returns notes for the user.

    Columns with a single value are left out, and the notes name them.

    Args:
        table: the table that holds the columns.
        names: names of the columns to encode.
        rows: (m,) row numbers of the training set.
        missing: what happens to missing entries, as in `Encoding`.
        what: name of the table, for messages.

    Raises:
        DataError: if a column cannot become features: dates, identifiers, or text mixed with numbers. Also if no
            column differs between training rows, or an entry is missing and `missing` is `refuse`.
    """
    columns, notes, constant = [], [], []
    for name in names:
        plain = Column(name, () if is_category(table.column(name).type, name, what) else None, None)
        values, gone = entries(table, plain, rows, what)
        there = values[~gone]
        if gone.any() and missing == "refuse":
            raise DataError(_of_missing(what, name, rows[gone]))
        if not len(there) or (there == there[0]).all():
            constant.append(name)
        elif plain.levels is None:
            if _numbers_rows(there):
                notes.append(
                    f"column {name!r} of {what} numbers the rows: if it is an identifier, leave it out "
                    "(data.features names the columns that are used)"
                )
            columns.append(Column(name, None, (float(there.mean()),) if missing == "mean" else None))
        else:
            levels, counts = np.unique(there.astype(np.str_), return_counts=True)
            _require_categories(table, name, there, rows[~gone], what)
            fill = tuple(float(x) for x in counts / len(there)) if missing == "mean" else None
            columns.append(Column(name, tuple(str(one) for one in levels), fill))
    if constant:
        listed = ", ".join(map(repr, constant))
        notes.append(f"left out columns of {what} with one value in all training rows: {listed}")
    if not columns:
        raise DataError(f"{what} has no column that differs between training rows: add a feature that varies")
    return Encoding(tuple(columns), missing), notes


def is_category(kind: pa.DataType, name: str, what: str) -> bool:
    """Return whether a column holds categories (text, truth values or a dictionary of levels); False for numbers.

    Raises:
        DataError: if the column holds neither numbers nor categories, such as dates.
    """
    import pyarrow.types as kinds

    if kinds.is_dictionary(kind) or kinds.is_boolean(kind) or _is_text(kind):
        return True
    if kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_decimal(kind) or kinds.is_null(kind):
        return False
    raise DataError(
        f"column {name!r} of {what} holds {kind}, which is neither numbers nor categories: convert it (such as a date "
        "to a number of days), or leave it out (data.features names the columns that are used)"
    )


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow.types as kinds

    return kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind)


def entries(table: pa.Table, column: Column, rows: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a column's entries in some rows, as float64 or text objects, and a mask of missing entries."""
    found = table.column(column.name)
    is_text = is_category(found.type, column.name, what)
    if column.levels is not None:
        values = np.array([None if one is None or one != one else str(one) for one in found.to_pylist()], dtype=object)[
            rows
        ]
        return values, np.array([one is None for one in values], dtype=bool)
    if is_text:
        values = np.array(found.to_pylist(), dtype=object)[rows]
        for row, one in zip(rows, values, strict=True):
            if one is not None and not _is_number(one):
                raise DataError(
                    f"column {column.name!r} of {what} holds {one!r} in row {row}, which is not a number: correct it"
                )
        numbers = np.array([np.nan if one is None else float(one) for one in values])
    else:
        numbers = found.cast("float64", safe=False).to_numpy()[rows]
    infinite = np.flatnonzero(np.isinf(numbers))
    if infinite.size:
        raise DataError(f"column {column.name!r} of {what} is infinite in row {rows[infinite[0]]}: correct it")
    return np.array(numbers), np.isnan(numbers)


def _block(column: Column, values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return the features (m, f) of a column's entries and the unknown levels. Missing entries give zeros or NaN."""
    if column.levels is None:
        return np.array(values, dtype=np.float64)[:, None], []
    places = {level: k for k, level in enumerate(column.levels)}
    block, unseen = np.zeros((len(values), len(column.levels))), {}
    for row, one in enumerate(values):
        if one in places:
            block[row, places[one]] = 1.0
        elif one is not None:
            unseen[one] = None
    return block, list(unseen)


def _of_missing(what: str, name: str, rows: np.ndarray) -> str:
    more = f" and {len(rows) - 1} other rows" if len(rows) > 1 else ""
    return (
        f"no entry in row {rows[0]}{more} of {what}, column {name!r} (the first row of data is 0): fill it in, or "
        "set data.missing=drop (leaves such rows out) or data.missing=mean (takes the mean of the training rows)"
    )


def _require_categories(table: pa.Table, name: str, there: np.ndarray, rows: np.ndarray, what: str) -> None:
    """Refuse text that identifies rows, and text that consists mostly of numbers."""
    import pyarrow.types as kinds

    distinct = list(dict.fromkeys(there.tolist()))
    if kinds.is_boolean(table.column(name).type):
        return
    if not kinds.is_dictionary(table.column(name).type):
        words = [one for one in distinct if not _is_number(one)]
        if words and len(distinct) - len(words) > _NUMBERS * len(distinct) and len(distinct) > 2:
            row = next(int(row) for row, one in zip(rows, there, strict=True) if one == words[0])
            raise DataError(
                f"column {name!r} of {what} is text, but most entries are numbers; row {row} holds {words[0]!r}: "
                "correct such entries, or leave them empty and set data.missing"
            )
    if (len(distinct) > _MOST_LEVELS and len(distinct) > len(there) / 2) or len(distinct) == len(there) > 2:
        raise DataError(
            f"column {name!r} of {what} has {len(distinct)} levels in {len(there)} training rows, so it seems to "
            "identify rows. Leave it out: data.features names the columns that are used"
        )


def _is_number(text: Any) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers_rows(values: np.ndarray) -> bool:
    """Return whether a column numbers the rows: distinct whole numbers with no more gaps than test rows cause."""
    if len(values) < 20 or (values != np.round(values)).any() or len(np.unique(values)) < len(values):
        return False
    return bool(values.max() - values.min() < 2 * len(values))
