"""Computes both products of a tile while it is read once. Numba compiles the code for this processor.

BLAS reads a tile twice, converts float32 to float64 into a buffer first, and is made for wide blocks: with nine vectors it reaches a
sixth of the processor's rate. This code multiplies four rows of the tile with three vectors at a time. Their twelve sums stay in
registers, and the mirrored product is added to rows that stay in the cache. If the tile is in the cache, it reaches 97% of the
processor's rate of multiply-adds.

Three measures keep it near that rate if the tile is in memory. (With tiles of 2,048 rows, nine vectors and one core, float32 and float64
products take 1.98 and 3.13 ms without them, and 1.51 and 2.84 ms with them. The arithmetic alone takes 1.28 and 2.55 ms.)

- The next four rows are requested from memory while these are multiplied. Otherwise the processor alternates between reading and
  arithmetic. LLVM does not vectorise a loop with such requests, so `_strip` writes vector instructions itself.
- Rows of `x` and of the mirrored product begin at multiples of 64 bytes: see `skewed`.
- These rows are placed so that the cache can hold all of them.

`benchmarks/passes.py` measures a pass; docs/performance.md has the results. Numba is in the extra `fast`. Without it `products.py` uses
BLAS.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_OPTIONS = {"nogil": True, "error_model": "numpy"}

# The compiler may fuse a multiplication and an addition, and may sum the lanes of a vector in any order. It may not assume that values are
# finite.
_CONTRACT, _REORDER = ("contract",), ("reassoc",)

_ROWS = 4  # rows of a tile that are multiplied at a time
_LINE = 64  # bytes of a cache line
_INT, _INT32 = ir.IntType(64), ir.IntType(32)


def _vector_bytes() -> int:
    """Number of bytes of a vector register of this processor."""
    features = llvmlite.binding.get_host_cpu_features()
    return 64 if features.get("avx512f") else 32 if features.get("avx2") else 16


_VECTOR = _vector_bytes()


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    """The function, compiled at its first call. The result is cached on disk for other processes if a folder is writable."""
    function = inspect.unwrap(function)  # tests wrap functions to check types
    try:
        return njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # no folder for the cache
        return njit(**_OPTIONS)(function)


def skewed(rows: int, cols: int, dtype: np.dtype | str) -> np.ndarray:
    """Zeros `(rows, cols)` whose rows begin at multiples of 64 bytes. Consecutive rows are nine lines apart in the sets of the cache.

    Rows with a distance of a multiple of 4,096 bytes compete for the same few lines of the first-level cache. Products of such vectors
    are up to a third slower.
    """
    size = np.dtype(dtype).itemsize
    page = 4096 // size
    pitch = -(-cols // page) * page + 9 * _LINE // size
    flat = np.zeros(rows * pitch + _LINE // size, dtype)
    start = -flat.ctypes.data % _LINE // size
    return flat[start : start + rows * pitch].reshape(rows, pitch)[:, :cols]


def both(panel: np.ndarray, x: np.ndarray, row: int, col: int) -> tuple[np.ndarray, np.ndarray]:
    """The products of a panel and of its transpose with the matching columns of `x`.

    Args:
        panel: `(h, w)` float32 or float64; copied if it is not contiguous.
        x: `(k, n)` with contiguous rows, preferably from `skewed`. Its dtype, float32 or float64, is the precision of the products. `k`
            is at least 2.
        row: column of `x` that belongs to the panel's first row.
        col: column of `x` that belongs to the panel's first column.

    Returns:
        `x[:, col:col + w] @ panel.T`, `(k, h)`, and `x[:, row:row + h] @ panel`, `(k, w)`.
    """
    # All arrays are contiguous and read-only, so Numba compiles only one type.
    panel, x = np.ascontiguousarray(panel).view(), x.view()
    panel.flags.writeable = x.flags.writeable = False
    (h, w), k = panel.shape, len(x)
    own = np.zeros((k, -(-h // _ROWS) * _ROWS), x.dtype)
    mirrored = skewed(k, w, x.dtype)
    _both(panel, x, row, col, own, mirrored)
    return own[:, :h], mirrored


def _strip(count: int, *, wide: bool) -> Any:
    """A function for Numba that computes both products of four rows of a panel with `count` vectors, in a range of columns.

    Args:
        count: number of vectors.
        wide: whether to use whole vector registers and to request the next four rows; otherwise it processes a column at a time.
    """

    @intrinsic
    def strip(_, panel, x, row, col, own, mirrored, i, c, first, last):
        """Multiply from row `i` of the panel and from vector `c` on, in the columns from `first` to `last` (excluded)."""
        stored, products = panel.dtype.bitwidth // 8, x.dtype.bitwidth // 8
        lanes = _VECTOR // products if wide else 1

        def codegen(context, builder, signature, given):
            a, v, sums, mirror = (
                context.make_array(signature.args[k])(context, builder, given[k]) for k in (0, 1, 4, 5)
            )
            row, col, i, c, first, last = (given[k] for k in (2, 3, 6, 7, 8, 9))
            entry, number = (context.get_data_type(signature.args[k].dtype) for k in (0, 1))
            entries, numbers = ir.VectorType(entry, lanes), ir.VectorType(number, lanes)
            height, width = (builder.extract_value(a.shape, k) for k in (0, 1))

            def plus(x, y):
                return builder.add(x, y if isinstance(y, ir.Value) else _INT(y))

            def times(x, y):
                return builder.mul(x, y if isinstance(y, ir.Value) else _INT(y))

            def address(array, r):
                return plus(builder.ptrtoint(array.data, _INT), times(r, builder.extract_value(array.strides, 0)))

            def pointer(at, kind):
                return builder.inttoptr(at, kind.as_pointer())

            def load(at, kind, align):
                return builder.load(pointer(at, kind), align=align)

            def added(total, x, y):
                return builder.fadd(total, builder.fmul(x, y, flags=_CONTRACT), flags=_CONTRACT)

            # Rows past the last one repeat it with weight zero. Their sums are dropped.
            inside = [builder.icmp_signed("<", plus(i, r), height) for r in range(_ROWS)]
            rows = [builder.select(inside[r], plus(i, r), plus(height, -1)) for r in range(_ROWS)]
            tile_rows = [address(a, r) for r in rows]
            vectors = [address(v, plus(c, k)) for k in range(count)]
            targets = [address(mirror, plus(c, k)) for k in range(count)]
            weights = []
            for at in vectors:
                found = [load(plus(at, times(plus(row, r), products)), number, products) for r in rows]
                weights.append(
                    [
                        _splat(builder, builder.select(known, one, number(0.0)), numbers)
                        for known, one in zip(inside, found, strict=True)
                    ]
                )
            vectors = [plus(at, times(col, products)) for at in vectors]
            zero = ir.Constant(numbers, [0.0] * lanes)
            totals = [[cgutils.alloca_once(builder, numbers) for _ in range(_ROWS)] for _ in range(count)]
            for one in totals:
                for total in one:
                    builder.store(zero, total)
            # The next four rows follow these in memory. The strips of these rows share the requests for them. The strip that begins
            # with vector c requests the part from the fraction `c / k` on, some lines in each iteration.
            many = builder.extract_value(v.shape, 0)
            group = times(width, _ROWS * stored)
            ahead = plus(plus(address(a, i), group), builder.sdiv(times(group, c), many))
            step = builder.sdiv(_INT(_ROWS * stored * lanes * count), many)

            with cgutils.for_range(builder, builder.sdiv(builder.sub(last, first), _INT(lanes)), intp=_INT) as loop:
                j = plus(first, times(loop.index, lanes))
                tile = [load(plus(at, times(j, stored)), entries, stored) for at in tile_rows]
                if stored < products:
                    tile = [builder.fpext(one, numbers) for one in tile]
                elif stored > products:
                    tile = [builder.fptrunc(one, numbers) for one in tile]
                if wide:
                    for line in range(_REQUESTS[stored, products]):
                        _request(builder, plus(plus(ahead, times(loop.index, step)), line * _LINE))
                for k in range(count):
                    vector = load(plus(vectors[k], times(j, products)), numbers, products)
                    target = plus(targets[k], times(j, products))
                    mirrored = load(target, numbers, products)
                    for r in range(_ROWS):
                        builder.store(added(builder.load(totals[k][r]), tile[r], vector), totals[k][r])
                        mirrored = added(mirrored, tile[r], weights[k][r])
                    builder.store(mirrored, pointer(target, numbers), align=products)

            for k in range(count):
                for r in range(_ROWS):
                    at = pointer(plus(address(sums, plus(c, k)), times(plus(i, r), products)), number)
                    builder.store(_sum(builder, builder.load(at), builder.load(totals[k][r])), at)
            return context.get_dummy_value()

        return types.void(panel, x, row, col, own, mirrored, i, c, first, last), codegen

    return strip


# Number of lines that a strip requests in an iteration, by the bytes of entries and of products, if three strips share the next rows. With
# fewer strips (up to four vectors) the processor prefetches the rest by itself.
_REQUESTS = {
    (stored, products): -(-_ROWS * stored * (_VECTOR // products) // (3 * _LINE))
    for stored in (4, 8)
    for products in (4, 8)
}


def _splat(builder: Any, value: Any, kind: Any) -> Any:
    """A vector that repeats a value."""
    nothing = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(nothing, value, _INT32(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_INT32, kind.count), [0] * kind.count))


def _sum(builder: Any, start: Any, vector: Any) -> Any:
    """`start` plus the lanes of a vector."""
    kind, bits = vector.type, 32 if isinstance(start.type, ir.FloatType) else 64
    name = f"llvm.vector.reduce.fadd.v{kind.count}f{bits}"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(start.type, [start.type, kind]), name)
    return builder.call(function, [start, vector], fastmath=_REORDER)


def _request(builder: Any, at: Any) -> None:
    """Request the line at an address for reading, into the second-level cache. An address outside of all arrays is harmless."""
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, _INT32, _INT32, _INT32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch")
    builder.call(function, [builder.inttoptr(at, byte), _INT32(0), _INT32(2), _INT32(1)])


_three, _three_last = _strip(3, wide=True), _strip(3, wide=False)
_two, _two_last = _strip(2, wide=True), _strip(2, wide=False)


@_compiled
def _both(panel, x, row, col, own, mirrored):
    h, w = panel.shape
    k = x.shape[0]
    whole = w - w % (_VECTOR // x.itemsize)
    threes = k - 2 * ((2 * k) % 3)  # 3 a, where k = 3 a + 2 b with the smallest b
    for i in range(0, h, _ROWS):
        for c in range(0, threes, 3):
            _three(panel, x, row, col, own, mirrored, i, c, 0, whole)
            if whole < w:
                _three_last(panel, x, row, col, own, mirrored, i, c, whole, w)
        for c in range(threes, k, 2):
            _two(panel, x, row, col, own, mirrored, i, c, 0, whole)
            if whole < w:
                _two_last(panel, x, row, col, own, mirrored, i, c, whole, w)
