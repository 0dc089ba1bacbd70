"""Converts class labels to integers: numbers, names, truth values, one-hot rows and categories."""

from __future__ import annotations

from typing import Any

import numpy as np

from ntkpipe.errors import DataError


def numbered(
    y_train: np.ndarray, y_test: np.ndarray | None, names: tuple[str, ...] | None
) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...] | None]:
    """Convert labels that mean classes to integers; numbers stay unchanged.

    The function accepts names (text or bytes), truth values, floats that are whole numbers, one-hot rows `(n, c)` and
    columns `(n, 1)`. It numbers names in the order of `names`, or in sorted order.

    Args:
        y_train: labels of the training points.
        y_test: labels of the test points; None if unknown.
        names: names of the classes, if known.

    Returns:
        Training labels, test labels and the names of the classes. Labels are int64, or unchanged if they are numbers.

    Raises:
        DataError: if a label is missing, or a test point has a name that no training point has.
    """
    y_train = _plain("y_train", y_train)
    y_test = None if y_test is None else _plain("y_test", y_test)
    if y_train.dtype.kind == "U":
        if names is None:
            names = tuple(str(name) for name in np.unique(y_train))
        made = _by_name("y_train", y_train, names)
        return made, None if y_test is None else _by_name("y_test", y_test, names), names
    if y_train.dtype.kind == "b":
        names = names or ("False", "True")
        return y_train.astype(np.int64), None if y_test is None else y_test.astype(np.int64), names
    return y_train, y_test, names


def categories_of(y: Any) -> tuple[str, ...] | None:
    """Return the names of the categories of a pandas series or index, in their order; None for other types."""
    found = getattr(getattr(y, "dtype", None), "categories", None)
    return None if found is None else tuple(str(name) for name in found)


def is_one_hot(y: np.ndarray) -> bool:
    """Return whether `y` has shape `(n, c)`, c at least 2, and each row has a single 1 and zeros elsewhere."""
    if y.ndim != 2 or y.shape[1] < 2 or y.dtype.kind not in "biuf":
        return False
    return bool(np.isin(y, (0, 1)).all() and (np.count_nonzero(y, axis=1) == 1).all())


def _plain(name: str, y: np.ndarray) -> np.ndarray:
    """Return one label per row, as text, truth values or numbers."""
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if is_one_hot(y):
        return y.argmax(axis=1).astype(np.int64)
    if y.ndim != 1:
        return y
    if y.dtype.kind == "f" and np.isfinite(y).all() and (y == np.round(y)).all() and (np.abs(y) < 2**53).all():
        return y.astype(np.int64)
    if y.dtype.kind == "S":
        return np.array([one.decode(errors="replace") for one in y.tolist()], dtype=np.str_)
    if y.dtype.kind == "T" or (y.dtype.kind == "O" and y.size):
        return _of_objects(name, y)
    return y


def _of_objects(name: str, y: np.ndarray) -> np.ndarray:
    values = y.tolist()
    missing = [row for row, one in enumerate(values) if one is None or one != one]
    if missing:
        raise DataError(
            f"{name} has no label at row {missing[0]} ({len(missing)} such rows): label these rows or remove them"
        )
    kinds = {bool if isinstance(one, (bool, np.bool_)) else type(one) for one in values}
    if kinds <= {bool, int, float}:
        return _plain(name, np.array(values))
    if kinds <= {str, np.str_}:
        return np.array(values, dtype=np.str_)
    raise DataError(
        f"{name} holds {', '.join(sorted(kind.__name__ for kind in kinds))}: give labels of one kind, names or numbers"
    )


def _by_name(array: str, y: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    y = y.astype(np.str_)
    places = {name: k for k, name in enumerate(names)}
    numbers = np.array([places.get(one, -1) for one in y.tolist()], dtype=np.int64)
    strange = np.flatnonzero(numbers < 0)
    if strange.size:
        raise DataError(
            f"{array} holds {str(y[strange[0]])!r} at row {strange[0]} ({strange.size} such rows), which is not one "
            f"of the classes {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}: correct the label, or "
            "remove these rows"
        )
    return numbers
