"""The kernels of a tiled factorisation, in place on blocks of rows, without Python's lock.

`scipy.linalg.blas` holds the lock while it computes. A thread that reads ahead then runs only once per product (60 times a
second beside products of 768 rows, where 1,200 are needed), so nothing is read ahead. This module calls the same routines
by `ctypes`, which releases the lock, through the function pointers that SciPy publishes for compiled callers
(`scipy.linalg.cython_blas`).
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np
from scipy.linalg import cython_blas, cython_lapack  # pyright: ignore[reportAttributeAccessIssue]

_ZERO = {"d": ctypes.c_double(0.0), "s": ctypes.c_float(0.0)}
_ONE = {"d": ctypes.c_double(1.0), "s": ctypes.c_float(1.0)}
_MINUS = {"d": ctypes.c_double(-1.0), "s": ctypes.c_float(-1.0)}


def subtract_product(c: np.ndarray, a: np.ndarray, b: np.ndarray, *, plain: bool = False, first: bool = False) -> None:
    """`C -= A B^T` (gemm). If `A is B`, only the lower triangle of `C` changes (syrk).

    Args:
        c: `(m, n)`, changed in place.
        a: `(m, k)`.
        b: `(n, k)`; `(k, n)` if plain.
        plain: whether to compute `C -= A B` instead, for all of `C`.
        first: whether to start from zero instead of `C`, which may then contain any values.
    """
    kind = _kind(c, a, b)
    (m, n), k = c.shape, a.shape[1]
    if a.shape[0] != m or b.shape != ((k, n) if plain else (n, k)):
        raise ValueError(f"shapes {c.shape}, {a.shape} and {b.shape} do not fit")
    minus, beta = _MINUS[kind], (_ZERO if first else _ONE)[kind]
    if a is b and not plain:
        _call(cython_blas, kind + "syrk", b"U", b"T", n, k, minus, a, _ld(a), beta, c, _ld(c))
    else:
        transpose = b"N" if plain else b"T"
        _call(cython_blas, kind + "gemm", transpose, b"N", n, m, k, minus, b, _ld(b), a, _ld(a), beta, c, _ld(c))


def divide_by_transpose(c: np.ndarray, triangle: np.ndarray) -> None:
    """`C <- C L^-T` (trsm).

    Args:
        c: `(m, n)`, changed in place.
        triangle: `(n, n)`, its lower triangle is `L`.
    """
    _divide(c, triangle, b"T")


def divide_by(c: np.ndarray, triangle: np.ndarray) -> None:
    """`C <- C L^-1` (trsm); see `divide_by_transpose`."""
    _divide(c, triangle, b"N")


def _divide(c: np.ndarray, triangle: np.ndarray, transpose: bytes) -> None:
    kind = _kind(c, triangle)
    m, n = c.shape
    if triangle.shape != (n, n):
        raise ValueError(f"shapes {c.shape} and {triangle.shape} do not fit")
    _call(
        cython_blas,
        kind + "trsm",
        *(b"L", b"U", transpose, b"N", n, m, _ONE[kind], triangle, _ld(triangle), c, _ld(c)),
    )


def invert_in_place(triangle: np.ndarray) -> None:
    """Invert the lower triangle (n, n) in place (trtri). Its diagonal must not be zero."""
    kind, n, info = _kind(triangle), len(triangle), ctypes.c_int(0)
    if triangle.shape != (n, n):
        raise ValueError(f"shape {triangle.shape} is not square")
    _call(cython_lapack, kind + "trtri", b"U", b"N", n, triangle, _ld(triangle), info)
    if info.value:
        raise ValueError(f"element {info.value} of the diagonal is zero")


def factor_in_place(c: np.ndarray) -> int:
    """Replace the lower triangle of `c` (n, n) by its Cholesky factor (potrf).

    Returns:
        0, or the 1-based index of the first pivot that is not positive.
    """
    kind, n, info = _kind(c), len(c), ctypes.c_int(0)
    if c.shape != (n, n):
        raise ValueError(f"shape {c.shape} is not square")
    _call(cython_lapack, kind + "potrf", b"U", n, c, _ld(c), info)
    assert info.value >= 0
    return info.value


def _kind(*arrays: np.ndarray) -> str:
    kind = {"float64": "d", "float32": "s"}.get(arrays[0].dtype.name)
    if kind is None or any(
        a.dtype != arrays[0].dtype or a.ndim != 2 or (a.size > 0 and a.shape[1] > 1 and a.strides[1] != a.itemsize)
        for a in arrays
    ):
        raise ValueError("blocks must have contiguous rows, two dimensions, and be all float32 or all float64")
    if not arrays[0].flags.writeable:
        raise ValueError("the block to be changed is read-only")
    return kind


def _ld(a: np.ndarray) -> int:
    """The distance of rows. A row is a column for Fortran, which reads every block transposed."""
    return max(a.strides[0] // a.itemsize, a.shape[1], 1)


def _call(module: Any, name: str, *values: Any) -> None:
    """Call a Fortran routine. All arguments are passed by address."""
    held = []
    for value in values:
        if isinstance(value, np.ndarray):
            held.append(ctypes.c_void_p(value.ctypes.data))
        elif isinstance(value, bytes):
            held.append(ctypes.c_char_p(value))
        elif isinstance(value, int):
            held.append(ctypes.byref(ctypes.c_int(value)))
        else:
            held.append(ctypes.byref(value))
    _routine(module.__name__, name, len(values))(*held)


@functools.cache
def _routine(module: str, name: str, count: int) -> Any:
    capsule = {m.__name__: m for m in (cython_blas, cython_lapack)}[module].__pyx_capi__[name]
    get_name = ctypes.pythonapi.PyCapsule_GetName
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    signature = get_name(capsule)
    parameters = signature.partition(b"(")[2].split(b",")
    # All integers must be C ints, which SciPy guarantees for every BLAS, and the number of parameters must match.
    if len(parameters) != count or any(b"int" in p and b"int *" not in p for p in parameters):
        raise RuntimeError(f"this SciPy's {name} has the signature {signature!r}, which ntkpipe does not know")
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * count)(get(capsule, signature))
