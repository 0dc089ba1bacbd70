"""Kernel matrices and features that are in memory instead of in files."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ntkpipe.data.given_array import GivenArray, open_given
from ntkpipe.data.given_features import GivenFeatures, given_features
from ntkpipe.data.given_gram import GivenGram, given_gram
from ntkpipe.errors import DataError


@dataclass(frozen=True)
class MemoryArray(GivenArray):
    """A `GivenArray` in memory. It is pickled with its values, so other processes get a copy.

    Args:
        values: the array.
    """

    values: np.ndarray = field(compare=False, repr=False, kw_only=True)

    def read(self, *where: slice) -> np.ndarray:
        """Return a part of the array, in native byte order and C order."""
        return np.ascontiguousarray(self.values[where], dtype=self.dtype)

    def diagonal(self, step: int = 1024) -> np.ndarray:
        """Return the diagonal `(n,)` of a square matrix, float64."""
        del step
        return np.array(self.values.diagonal(), dtype=np.float64)

    def require_same(self) -> None:
        """Do nothing, because no other process can write to the array."""


def given_from_arrays(train: Any, test: Any, test_diagonal: Any, edge: int | None) -> GivenGram:
    """Combine both blocks of a kernel from arrays. Their values are unchecked until `check_gram`.

    Raises:
        DataError: if the arrays are not floats, or their shapes do not fit.
    """
    arrays = [memory_array("train", train, 2), memory_array("test", test, 2)]
    diagonal = None if test_diagonal is None else memory_array("test_diagonal", test_diagonal, 1)
    return given_gram(arrays[0], arrays[1], diagonal, edge)


def features_from_arrays(train: Any, test: Any, scale: float) -> GivenFeatures:
    """Combine features from arrays or from paths of files. Their values are unchecked until `check_features`.

    Raises:
        ConfigError: if the scale is invalid.
        DataError: if the arrays are not floats, or their shapes do not fit.
    """
    named = (("train", train), ("test", test))
    arrays = [
        open_given(str(values), name, 2) if isinstance(values, (str, os.PathLike)) else memory_array(name, values, 2)
        for name, values in named
    ]
    return given_features(arrays[0], arrays[1], scale)


def memory_array(name: str, values: Any, dimensions: int) -> MemoryArray:
    """Wrap an array of floats, with a name for messages.

    Raises:
        DataError: if it is neither float32 nor float64, has another number of dimensions, or is empty.
    """
    values = np.asarray(values)
    if values.dtype.kind != "f" or values.dtype.itemsize not in (4, 8):
        raise DataError(f"{name} holds {values.dtype}: give float32 or float64")
    if values.ndim != dimensions or not values.size:
        raise DataError(f"{name} has shape {values.shape}, but needs {dimensions} dimensions, none of size 0")
    return MemoryArray(f"the array {name}", values.shape, f"float{8 * values.dtype.itemsize}", (), (), values=values)
