"""Checks labels and encodes them as regression targets of the squared loss."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ntkpipe.data.class_labels import numbered
from ntkpipe.data.raw import RawImages
from ntkpipe.errors import ConfigError, DataError


class Targets(NamedTuple):
    """Targets `(n, c)` float64, labels `(n,)` int64 (None for regression) and a name for each column.

    Targets of test points are in their original units, and NaN where unknown. Targets of training points are
    `(y - mean) / scale`, with `mean` and `scale` of shape `(c,)`, or unchanged if these are None.
    """

    y_train: np.ndarray
    y_test: np.ndarray
    labels_train: np.ndarray | None
    labels_test: np.ndarray | None
    class_names: tuple[str, ...]
    mean: np.ndarray | None = None
    scale: np.ndarray | None = None


def encode_labels(labels: np.ndarray, classes: int, coding: str) -> np.ndarray:
    """Encode labels as shifted one-hot targets.

    Args:
        labels: `(n,)` integers in `[0, classes)`.
        classes: number of classes, which is the number of columns.
        coding: `centered` (one-hot minus 1/classes, so that every row sums to 0) or `half` (one-hot minus 1/2).

    Returns:
        `(n, classes)` float64.

    Raises:
        ConfigError: if `coding` is neither of these.
    """
    shifts = {"centered": 1.0 / classes, "half": 0.5}
    if coding not in shifts:
        raise ConfigError(f"data.labels={coding!r} is not one of centered, half")
    y = np.full((labels.shape[0], classes), -shifts[coding])
    y[np.arange(labels.shape[0]), labels] += 1.0
    return y


def make_targets(raw: RawImages, coding: str | None, targets: str | None = None) -> Targets:
    """Make the targets of a data set, in the order of `raw`.

    Args:
        raw: checked images and labels.
        coding: `centered`, `half`, or `regression` (real targets, one column per output); None takes the loader's
            choice.
        targets: `standardize` or `none` for regression targets; None standardises only those of tables.

    Raises:
        ConfigError: if `targets` is `standardize` for classes.
        DataError: if labels are not integers, out of range or of a single class. Also if regression targets are not
            finite, or differ in their number of columns between training and test set.
    """
    coding = coding or raw.coding or "centered"
    if coding == "regression":
        return _regression(raw, standardize=targets == "standardize" or (targets is None and raw.encoding is not None))
    if targets == "standardize":
        raise ConfigError(
            f"data.targets=standardize is for real targets, but data.labels={coding} codes classes: set "
            "data.labels=regression, or leave data.targets out"
        )
    y_train, y_test, names = numbered(raw.y_train, raw.y_test, raw.class_names)
    labels_train = integer_labels("y_train", y_train)
    labels_test = None if y_test is None else integer_labels("y_test", y_test)
    if names is None:
        names = contiguous_names(labels_train, "give `class_names` for the labels 0, 1, ... (an array in a file)")
    for name, labels in (("y_train", labels_train), ("y_test", labels_test)):
        if labels is None:
            continue
        outside = np.flatnonzero(labels >= len(names))
        if outside.size:
            raise DataError(
                f"{name} holds label {labels[outside[0]]} at row {outside[0]} ({outside.size} such rows), but labels "
                f"must lie in 0..{len(names) - 1}, the classes of the training set: correct them or remove these rows"
            )
    classes = len(names)
    require_two_classes(labels_train, names, "the training set", "Add points of another class")
    return Targets(
        encode_labels(labels_train, classes, coding),
        np.full((len(raw.x_test), classes), np.nan)
        if labels_test is None
        else encode_labels(labels_test, classes, coding),
        labels_train,
        labels_test,
        names,
    )


def _regression(raw: RawImages, *, standardize: bool) -> Targets:
    y_train = regression_targets("y_train", raw.y_train)
    c = y_train.shape[1]
    y_test = np.full((len(raw.x_test), c), np.nan) if raw.y_test is None else regression_targets("y_test", raw.y_test)
    if y_test.shape[1] != c:
        raise DataError(
            f"y_train has {c} targets per {raw.rows_are[:-1]} and y_test {y_test.shape[1]}: they must agree"
        )
    names = raw.target_names or (tuple(f"target_{k}" for k in range(c)) if c > 1 else ("target",))
    if not standardize:
        return Targets(y_train, y_test, None, None, names)
    mean, scale = y_train.mean(axis=0), y_train.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    return Targets((y_train - mean) / scale, y_test, None, None, names, mean, scale)


def require_two_classes(
    labels: np.ndarray,
    names: tuple[str, ...],
    what: str,
    remedy: str = "Raise data.train_size, or set data.balanced=true",
) -> None:
    """Refuse labels of a single class.

    Raises:
        DataError: if all labels are equal. The text names the class, `what` as the set of the labels, and the remedy.
    """
    if labels.min() == labels.max():
        raise DataError(
            f"all {labels.shape[0]} points of {what} have the same label, {labels[0]} ({names[labels[0]]!r}): "
            f"classification needs at least two classes. {remedy}"
        )


def class_notes(
    labels_train: np.ndarray | None, labels_test: np.ndarray | None, names: tuple[str, ...]
) -> tuple[str, ...]:
    """Return notes on classes that the training or test set lacks; an empty tuple for regression.

    Args:
        labels_train: `(n,)` labels of the whole training set.
        labels_test: `(p,)` labels of the whole test set.
        names: names of the classes.
    """
    if labels_train is None or labels_test is None:
        return ()
    learnt, asked = np.unique(labels_train), np.unique(labels_test)
    notes = []
    if len(unlearnt := np.setdiff1d(asked, learnt)):
        count = int(np.isin(labels_test, unlearnt).sum())
        notes.append(
            f"{count} of {len(labels_test)} test points belong to classes without training points "
            f"({_some(unlearnt, names)}) and cannot be predicted correctly"
        )
    if len(unasked := np.setdiff1d(learnt, asked)):
        notes.append(f"classes without test points: {_some(unasked, names)}. Their accuracy is unknown")
    return tuple(notes)


def _some(labels: np.ndarray, names: tuple[str, ...]) -> str:
    shown = ", ".join(names[k] for k in labels[:5])
    return shown if len(labels) <= 5 else f"{shown} and {len(labels) - 5} more"


def integer_labels(name: str, y: np.ndarray, otherwise: str = "set data.labels=regression") -> np.ndarray:
    """Return labels `(n,)` int64 from an array of integers.

    Args:
        name: name of the array, for messages.
        y: `(n,)` or `(n, 1)` integers.
        otherwise: the remedy if the values are real targets, for messages.

    Raises:
        DataError: if the values are not integers, or negative.
    """
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise DataError(
            f"{name} has shape {y.shape}: give one label per point, or one-hot rows (one 1 and else zeros); or {otherwise} to "
            "use these columns as targets"
        )
    if y.dtype.kind not in "iu":
        raise DataError(f"{name} is {y.dtype}, not integer: {_remedy(y, otherwise)}")
    if y.dtype.kind == "i" and y.min() < 0:
        row = int(np.flatnonzero(y < 0)[0])
        raise DataError(f"{name} holds the negative label {y[row]} at row {row}: labels must start at 0")
    if y.max() > np.iinfo(np.int64).max:
        raise DataError(f"{name} holds label {y.max()}: labels must count classes from 0")
    return y.astype(np.int64)


def _remedy(y: np.ndarray, otherwise: str) -> str:
    """Return the remedy for labels that are not integers."""
    if y.dtype.kind == "f":
        missing = np.flatnonzero(~np.isfinite(y))
        if missing.size:
            return f"{missing.size} labels are NaN or infinite (first at row {missing[0]}): remove these rows"
    return f"store labels as integers 0, 1, ..., or {otherwise} for real targets"


def contiguous_names(labels: np.ndarray, otherwise: str) -> tuple[str, ...]:
    """Return the numbers of the classes as their names.

    Args:
        labels: `(n,)` labels of the training set.
        otherwise: the remedy if an empty class is intended, for messages.

    Raises:
        DataError: if a number below the largest label is missing.
    """
    present = np.unique(labels)
    if np.array_equal(present, np.arange(1, present.size + 1)):
        raise DataError(
            f"labels of y_train are 1..{present.size}, without label 0: subtract 1 from all labels, or {otherwise}"
        )
    if present[-1] != present.size - 1:
        absent = int(np.flatnonzero(present != np.arange(present.size))[0])
        raise DataError(
            f"y_train holds label {present[-1]} but no label {absent}: labels must be 0..{present.size - 1} for "
            f"{present.size} classes. Correct the label, renumber the classes, or {otherwise}. If these are real targets, set "
            "data.labels=regression"
        )
    return tuple(str(k) for k in range(present.size))


def regression_targets(name: str, y: np.ndarray) -> np.ndarray:
    """Return real targets `(n, c)` float64 from an array `(n,)` or `(n, c)`.

    Raises:
        DataError: if the values are not finite numbers, or there are no columns.
    """
    if y.dtype.kind not in "iufb" or y.ndim not in (1, 2):
        raise DataError(
            f"{name} is {y.dtype} of shape {y.shape}: regression targets must be real numbers, (n,) or (n, outputs)"
        )
    y = y.reshape(y.shape[0], -1).astype(np.float64)
    if y.shape[1] == 0:
        raise DataError(f"{name} has no columns: regression needs at least one target per point")
    bad = np.flatnonzero(~np.isfinite(y).all(axis=1))
    if bad.size:
        raise DataError(
            f"{bad.size} regression targets in {name} are NaN or infinite (first at row {bad[0]}): clean them"
        )
    return y
