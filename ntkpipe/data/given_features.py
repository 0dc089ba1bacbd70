"""Features that a user computed (gradients of a network made elsewhere, embeddings, random features): read in place, never copied.

There may be more columns than fit into memory beside a few rows: whoever reads them asks for a block of columns at a time.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ntkpipe.data.given_array import GivenArray, open_given
from ntkpipe.errors import ConfigError, DataError

# Rows and columns that are hashed together: of the identity, hence fixed.
_HASH_ROWS, _HASH_COLUMNS = 256, 16384


@dataclass(frozen=True)
class GivenFeatures:
    """Features of training and test points; the kernel is their product over `scale`. Made by `open_features`.

    Args:
        train: `(n, P)`.
        test: `(p, P)`.
        scale: that products are divided by.
        content: SHA-256 of all values; empty until they were checked.
    """

    train: GivenArray
    test: GivenArray
    scale: float = 1.0
    content: str = ""

    @property
    def where(self) -> str:
        """For messages."""
        return self.train.path

    @property
    def count(self) -> int:
        """Features of a point, P: the kernel's rank is no larger."""
        return self.train.shape[1]

    @property
    def chunk(self) -> int:
        """Columns that are read together at least: those of the larger chunk."""
        return min(self.count, max(a.chunks[1] if a.chunks else 1 for a in (self.train, self.test)))

    def array(self, block: str) -> GivenArray:
        """Of `train` or `test`."""
        return self.train if block == "train" else self.test


def open_features(train: str, test: str, scale: float = 1.0) -> GivenFeatures:
    """Look at the files; reads their headers alone.

    Raises:
        ConfigError: if the scale is none.
        DataError: if they are no arrays of floats, or their shapes do not fit.
    """
    return given_features(open_given(train, "kernel.train", 2), open_given(test, "kernel.test", 2), scale)


def given_features(train: GivenArray, test: GivenArray, scale: float) -> GivenFeatures:
    """Both blocks, if they have the same features.

    Raises:
        ConfigError: if the scale is none.
        DataError: if their widths differ.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise ConfigError(f"kernel.scale={scale} must be finite and above 0: products of features are divided by it")
    if train.shape[1] != test.shape[1]:
        turned = ": its rows must be test points: transpose it" if test.shape[0] == train.shape[1] else ""
        raise DataError(
            f"kernel.train={train.path} has {train.shape[1]:,} features of each point and kernel.test={test.path}, of shape "
            f"{test.shape}, has {test.shape[1]:,}{turned}"
        )
    return GivenFeatures(train, test, scale)


def check_features(given: GivenFeatures) -> GivenFeatures:
    """Read everything once: refuse what is not finite, hash the rest.

    Raises:
        DataError: naming the entry, or a point whose features are all zero.
    """
    seen = hashlib.sha256(f"{given.train.dtype} {given.train.shape} {given.test.dtype} {given.test.shape}".encode())
    for array in (given.train, given.test):
        _check(array, seen)
    return replace(given, content=seen.hexdigest())


def _check(array: GivenArray, seen: Any) -> None:
    """Refuse what is no features of points, and hash all values into `seen`."""
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
                f"row {int(np.flatnonzero(~present)[0]) + top} of {array.path} is all zero: its kernel is zero with every point. "
                "Leave the point out, or give it a constant feature"
            )


def with_test(given: GivenFeatures, test: GivenArray) -> GivenFeatures:
    """Checked features with other test points, which are checked as `check_features` does.

    Raises:
        DataError: if they are no features like those of the training points.
    """
    if test.shape[1] != given.count:
        raise DataError(
            f"{test.path} has shape {test.shape}: give the {given.count:,} features of each new point, (new points, {given.count})"
        )
    seen = hashlib.sha256(f"{given.content} {test.dtype} {test.shape}".encode())
    _check(test, seen)
    return replace(given, test=test, content=seen.hexdigest())


def changed_features(given: GivenFeatures) -> list[str]:
    """Read all values again; a line if they are not those of before."""
    try:
        same = check_features(replace(given, content="")).content == given.content
    except DataError as error:
        return [str(error)]
    return [] if same else [f"{given.where} or {given.test.path} holds other values than when this run looked at them"]
