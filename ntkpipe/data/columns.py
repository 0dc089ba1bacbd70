"""Columns of a table as numbers: what is learnt from the training rows, and applied to any others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as kinds

from ntkpipe.errors import DataError

# A column of text with more levels than this, and more than half as many as rows, names its rows and describes nothing.
_MOST_LEVELS = 50
# Of text of which so much reads as numbers, the rest is taken for mistakes.
_NUMBERS = 0.5


@dataclass(frozen=True)
class Column:
    """What the training rows say of a column.

    Args:
        name: of the column.
        levels: of categories, each of which is a feature of 0 and 1; None of a column of numbers, which is one feature.
        fill: values of the features where the entry is missing: their means. None where missing entries are refused.
    """

    name: str
    levels: tuple[str, ...] | None
    fill: tuple[float, ...] | None

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features."""
        return (self.name,) if self.levels is None else tuple(f"{self.name}={level}" for level in self.levels)


@dataclass(frozen=True)
class Encoding:
    """How the columns of a table become features.

    Args:
        columns: in order.
        missing: `refuse`, `drop` (rows with missing entries) or `mean`.
    """

    columns: tuple[Column, ...]
    missing: str

    @property
    def features(self) -> tuple[str, ...]:
        """Names of all features, in order."""
        return tuple(name for column in self.columns for name in column.features)

    @property
    def fixed(self) -> np.ndarray:
        """(d,) bool: features of 0 and 1, which standardisation leaves alone."""
        return np.array([column.levels is not None for column in self.columns for _ in column.features])

    def apply(self, table: pa.Table, rows: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Features of some rows of a table.

        Args:
            table: with all columns.
            rows: (m,) row numbers.
            what: the table, for messages.

        Returns:
            (k, d) float64, the k row numbers that are left, and what the user should know.

        Raises:
            DataError: naming row and column of an entry that is missing, infinite or no number where numbers are wanted.
        """
        made, notes = [], []
        gone = np.zeros(len(rows), dtype=bool)
        for column in self.columns:
            if column.name not in table.column_names:
                raise DataError(f"{what} has no column {column.name!r}, which the training rows have: add it")
            values, missing = entries(table, column, rows, what)
            if missing.any() and self.missing == "refuse":
                raise DataError(_of_missing(what, column.name, rows[missing]))
            block, unseen = _block(column, values)
            if unseen:
                notes.append(
                    f"{what}: column {column.name!r} holds {', '.join(map(repr, unseen[:5]))}{', ...' if len(unseen) > 5 else ''}, which "
                    "no training row has: taken as none of its levels"
                )
            if self.missing == "mean" and column.fill is not None:
                block[missing] = column.fill
            else:
                gone |= missing
            made.append(block)
        if gone.all():
            raise DataError(f"every row of {what} has a missing entry: data.missing=drop leaves nothing")
        if gone.any():
            notes.append(
                f"{what}: {gone.sum()} of {len(rows)} rows with missing entries are left out (data.missing=drop)"
            )
        return np.concatenate(made, axis=1)[~gone], rows[~gone], notes

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"missing": self.missing, "columns": [asdict(column) for column in self.columns]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Encoding:
        """What `to_dict` gave, from JSON."""
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
    """The encoding that the training rows define, and what the user should know.

    Columns that have one value alone are left out, and named.

    Args:
        table: that holds them.
        names: of the columns.
        rows: (m,) of the training set.
        missing: see `Encoding`.
        what: the table, for messages.

    Raises:
        DataError: for a column that has no features: dates, identifiers, text with numbers in it, nothing at all.
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
        notes.append(f"columns of {what} with one value in every training row are left out: {listed}")
    if not columns:
        raise DataError(f"{what} has no column that differs between training rows: there is nothing to learn from")
    return Encoding(tuple(columns), missing), notes


def is_category(kind: pa.DataType, name: str, what: str) -> bool:
    """Whether a column holds categories: text, truth values, or a dictionary of levels; False of numbers.

    Raises:
        DataError: for columns that are neither, such as dates.
    """
    if kinds.is_dictionary(kind) or kinds.is_boolean(kind) or _is_text(kind):
        return True
    if kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_decimal(kind) or kinds.is_null(kind):
        return False
    raise DataError(
        f"column {name!r} of {what} holds {kind}, which is neither numbers nor categories: convert it (a date, say, to days since "
        "some day), or leave it out (data.features names the columns that are used)"
    )


def _is_text(kind: pa.DataType) -> bool:
    return kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind)


def entries(table: pa.Table, column: Column, rows: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray]:
    """A column's entries in some rows: float64, or objects that are text; and which are missing."""
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
                    f"column {column.name!r} of {what} holds {one!r} in row {row}, which is no number: correct it"
                )
        numbers = np.array([np.nan if one is None else float(one) for one in values])
    else:
        numbers = found.cast(pa.float64(), safe=False).to_numpy()[rows]
    infinite = np.flatnonzero(np.isinf(numbers))
    if infinite.size:
        raise DataError(f"column {column.name!r} of {what} is infinite in row {rows[infinite[0]]}: correct it")
    return np.array(numbers), np.isnan(numbers)


def _block(column: Column, values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Features (m, f) of a column's entries, zeros or NaN where they are missing, and levels that are not known."""
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
        f"{what} has no entry in row {rows[0]}{more}, column {name!r} (the first row of data is 0): fill it in, or choose "
        "data.missing=drop (leaves such rows out) or data.missing=mean (takes the mean of the training rows)"
    )


def _require_categories(table: pa.Table, name: str, there: np.ndarray, rows: np.ndarray, what: str) -> None:
    """Refuse text that names every row, and text that is mostly numbers."""
    distinct = list(dict.fromkeys(there.tolist()))
    if kinds.is_boolean(table.column(name).type):
        return
    if not kinds.is_dictionary(table.column(name).type):
        words = [one for one in distinct if not _is_number(one)]
        if words and len(distinct) - len(words) > _NUMBERS * len(distinct) and len(distinct) > 2:
            row = next(int(row) for row, one in zip(rows, there, strict=True) if one == words[0])
            raise DataError(
                f"column {name!r} of {what} is text, but most of it reads as numbers; row {row} holds {words[0]!r}: correct such "
                "entries, or leave them empty and choose data.missing"
            )
    if (len(distinct) > _MOST_LEVELS and len(distinct) > len(there) / 2) or len(distinct) == len(there) > 2:
        raise DataError(
            f"column {name!r} of {what} has {len(distinct)} levels in {len(there)} training rows: it names rows and describes "
            "nothing. Leave it out: data.features names the columns that are used"
        )


def _is_number(text: Any) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers_rows(values: np.ndarray) -> bool:
    """Whether a column counts: whole numbers, each once, without more gaps than test rows make."""
    if len(values) < 20 or (values != np.round(values)).any() or len(np.unique(values)) < len(values):
        return False
    return bool(values.max() - values.min() < 2 * len(values))
