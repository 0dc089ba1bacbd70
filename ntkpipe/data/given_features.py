"""A user's features, read in place and never copied.

They may be gradients of another program's network, embeddings or random features. Even a few rows may have too many
columns for memory, so callers read a block of columns at a time.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ntkpipe.data.given_array import GivenArray, open_given
from ntkpipe.errors import ConfigError, DataError

# Rows and columns that are hashed together. The hash depends on them, so they must not change.
_HASH_ROWS, _HASH_COLUMNS = 256, 16384


@dataclass(frozen=True)
class GivenFeatures:
    """Features of training and test points; the kernel is their product divided by `scale`. `open_features` makes it.

    Args:
        train: `(n, P)` features of the training points.
        test: `(p, P)` features of the test points.
        scale: the divisor of the products.
        content: SHA-256 of all values; empty before they are checked.
    """

    train: GivenArray
    test: GivenArray
    scale: float = 1.0
    content: str = ""

    @property
    def where(self) -> str:
        """The path of the training features, for messages."""
        return self.train.path

    @property
    def count(self) -> int:
        """Number of features per point, P. The kernel's rank is at most P."""
        return self.train.shape[1]

    @property
    def chunk(self) -> int:
        """Smallest number of columns to read together: the width of the wider chunk."""
        return min(self.count, max(a.chunks[1] if a.chunks else 1 for a in (self.train, self.test)))

    def array(self, block: str) -> GivenArray:
        """Return the array of `block`, which is `train` or `test`."""
        return self.train if block == "train" else self.test


def open_features(train: str, test: str, scale: float = 1.0) -> GivenFeatures:
    """Open the files of training and test features and read only their headers.

    Raises:
        ConfigError: if the scale is invalid.
        DataError: if the files are no arrays of floats, or their shapes do not fit.
    """
    return given_features(open_given(train, "kernel.train", 2), open_given(test, "kernel.test", 2), scale)


def given_features(train: GivenArray, test: GivenArray, scale: float) -> GivenFeatures:
    """Combine features of training and test points.

    Raises:
        ConfigError: if the scale is invalid.
        DataError: if the numbers of features differ.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise ConfigError(
            f"kernel.scale={scale} must be finite and above 0, because products of features are divided by it"
        )
    if train.shape[1] != test.shape[1]:
        turned = ": its rows must be test points: transpose it" if test.shape[0] == train.shape[1] else ""
        raise DataError(
            f"kernel.train={train.path} has {train.shape[1]:,} features of each point and kernel.test={test.path}, of shape "
            f"{test.shape}, has {test.shape[1]:,}{turned}"
        )
    return GivenFeatures(train, test, scale)


def check_features(given: GivenFeatures) -> GivenFeatures:
    """Read all values once, refuse non-finite ones, and hash them.

    Raises:
        DataError: if an entry is not finite, or all features of a point are zero. The text names the entry or row.
    """
    seen = hashlib.sha256(f"{given.train.dtype} {given.train.shape} {given.test.dtype} {given.test.shape}".encode())
    for array in (given.train, given.test):
        _check(array, seen)
    return replace(given, content=seen.hexdigest())


def _check(array: GivenArray, seen: Any) -> None:
    """Check all values of an array and add them to the hash `seen`."""
    rows, columns = array.shape
    for top in range(0, rows, _HASH_ROWS):
        there = slice(top, min(top + _HASH_ROWS, rows))
        present = np.zeros(there.stop - there.start, dtype=bool)
        for left in range(0, columns, _HASH_COLUMNS):
            part = array.read(there, slice(left, min(left + _HASH_COLUMNS, columns)))
            finite = np.isfinite(part)
            if not finite.all():
                i, j = np.argwhere(~finite)[0]
                raise DataError(f"entry ({i + top}, {j + left}) of {array.path} is {part[i, j]}: clean it")
            seen.update(part.data)
            present |= part.any(axis=1)
        if not present.all():
            raise DataError(
                f"row {int(np.flatnonzero(~present)[0]) + top} of {array.path} is all zero, so its kernel with every "
                "point is zero. Leave the point out, or add a constant feature"
            )


def with_test(given: GivenFeatures, test: GivenArray) -> GivenFeatures:
    """Replace the test points of checked features. The new points are checked as in `check_features`.

    Raises:
        DataError: if the number of features differs from that of the training points, or a value is invalid.
    """
    if test.shape[1] != given.count:
        raise DataError(
            f"{test.path} has shape {test.shape}: give the {given.count:,} features of each new point, (new points, {given.count})"
        )
    seen = hashlib.sha256(f"{given.content} {test.dtype} {test.shape}".encode())
    _check(test, seen)
    return replace(given, test=test, content=seen.hexdigest())


def changed_features(given: GivenFeatures) -> list[str]:
    """Read all values again, and return a list with one message if they have changed."""
    try:
        same = check_features(replace(given, content="")).content == given.content
    except DataError as error:
        return [str(error)]
    return [] if same else [f"{given.where} or {given.test.path} has changed since this run checked it"]
