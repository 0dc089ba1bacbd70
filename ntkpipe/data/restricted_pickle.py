"""Reads the pickled arrays, numbers and strings of CIFAR without executing code from a pickle.

A pickle is a program that may call anything importable. This module binds the few names that NumPy's own pickles use to
inert records and refuses every other name. It rebuilds arrays from the records, so no pickle reaches a real callable.
"""

from __future__ import annotations

import io
import math
import pickle
from typing import Any

import numpy as np

from ntkpipe.errors import DataError

_ITEM_TYPES = frozenset({"u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8"})


class _DType:
    """A dtype as described by a pickle."""

    def __init__(self, name: Any = None, *_: Any) -> None:
        self.name = name
        self.order = "<"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def real(self) -> np.dtype:
        name = self.name.decode("ascii") if isinstance(self.name, bytes) else self.name
        if not isinstance(name, str) or name not in _ITEM_TYPES:
            raise DataError(f"it holds an array of dtype {name!r}; only plain numbers are read")
        return np.dtype(name).newbyteorder(">" if self.order in (">", b">") else "<")


class _Array:
    """An array as described by a pickle."""

    def __init__(self) -> None:
        self.shape: Any = None
        self.dtype: Any = None
        self.fortran: Any = False
        self.content: Any = None

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, self.fortran, self.content = state

    def real(self) -> np.ndarray:
        content = self.content.encode("latin1") if isinstance(self.content, str) else self.content
        shape_ok = isinstance(self.shape, tuple) and all(type(k) is int and k >= 0 for k in self.shape)
        if not isinstance(self.dtype, _DType) or not isinstance(content, (bytes, bytearray)) or not shape_ok:
            raise DataError("it holds a malformed array")
        dtype = self.dtype.real()
        if len(content) != math.prod(self.shape) * dtype.itemsize:
            raise DataError("it holds an array whose size disagrees with its shape")
        flat = np.frombuffer(content, dtype)
        return flat.reshape(self.shape, order="F" if self.fortran else "C")


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.shape, array.dtype, array.fortran, array.content = shape, dtype, order in ("F", b"F"), content
    return array


def _scalar(dtype: Any, content: Any = None) -> _Array:
    return _from_buffer(content, dtype, (), "C")


def _latin1(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", b"latin1"):
        raise DataError("it holds text in an unexpected encoding")
    return text.encode("latin1")


class _Inert:
    """A placeholder that a pickle can call but not change.

    It is needed because the BUILD opcode can set attributes of functions and classes.
    """

    __slots__ = ("_make",)

    def __init__(self, make: Any) -> None:
        self._make = make

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)

    def __setstate__(self, _: Any) -> None:
        raise DataError("it tries to change the reader")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Inert(_reconstruct),
    ("numpy", "dtype"): _Inert(_DType),
    ("_codecs", "encode"): _Inert(_latin1),
}
for _package in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_package}.multiarray", "_reconstruct"] = _Inert(_reconstruct)
    _ALLOWED[f"{_package}.multiarray", "scalar"] = _Inert(_scalar)
    _ALLOWED[f"{_package}.numeric", "_frombuffer"] = _Inert(_from_buffer)


# This is the reader in Python instead of C. With a few flipped bits in a batch, the C reader allocated memory for 15 s
# (a memo index of two billion) and raised a SystemError. Batches have few opcodes, so speed does not matter.
class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise DataError(
                f"it refers to {module}.{name}, which image batches do not need; nothing was executed"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise DataError("it refers to objects outside the file")


def load_plain(content: bytes, name: str) -> Any:
    """Read dictionaries, lists, numbers, strings and NumPy arrays from a pickle. Keys that are bytes become text.

    Args:
        content: content of the file.
        name: name of the file, for messages.

    Raises:
        DataError: if the pickle is malformed or holds anything else. Nothing in it is executed.
    """
    try:
        return _plain(_Unpickler(io.BytesIO(content), encoding="bytes").load())
    except DataError as error:
        raise DataError(f"{name} is not a batch of images: {error}. Use the official file") from None
    # A malformed pickle can raise almost any error.
    except Exception as error:
        raise DataError(
            f"{name} is not a readable pickle ({type(error).__name__}: {error}). Use the official file"
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.real()
    if isinstance(value, dict):
        return {(k.decode("latin1") if isinstance(k, bytes) else k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, _DType) or callable(value):
        raise DataError("it holds something other than numbers, strings and arrays")
    return value
