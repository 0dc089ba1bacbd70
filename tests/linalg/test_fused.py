"""Both products of a tile from one reading: against NumPy, for every shape, order and precision that a tile comes in."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from ntkpipe.linalg import products as products_module
from ntkpipe.linalg.products import BlasProducts, FusedProducts, accumulator

pytest.importorskip("numba", reason="the extra `fast` is not installed")

EPS = {"float32": 2.0**-24, "float64": 2.0**-53}


def _problem(h: int, w: int, k: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((h, w)).astype(dtype), rng.standard_normal((w + h, k))


@pytest.mark.parametrize("products", ["float32", "float64"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 7, 9, 16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (64, 17), (130, 257)])
def test_both_products_of_a_tile(shape, k, dtype, products):
    h, w = shape
    tile, x = _problem(h, w, k, dtype)
    total = FusedProducts(x, h + w, products)
    total.add(tile, w, 0, transpose=True)  # rows w to w + h, columns 0 to w
    expected = np.zeros((h + w, k))
    expected[w:] = tile.astype(np.float64) @ x[:w]
    expected[:w] = tile.astype(np.float64).T @ x[w:]
    # Each sum of m products is off by at most about m units of rounding of its absolute sum; x is rounded as well.
    size = np.zeros((h + w, k))
    size[w:], size[:w] = abs(tile) @ abs(x[:w]), abs(tile).T @ abs(x[w:])
    assert (np.abs(total.result() - expected) <= (max(h, w) + 4) * EPS[products] * size).all()


def test_without_the_mirrored_product():
    tile, x = _problem(30, 50, 3, "float32")
    total = FusedProducts(x, 80, "float64")
    total.add(tile, 50, 0, transpose=False)
    np.testing.assert_allclose(total.result()[50:], tile.astype(np.float64) @ x[:50], rtol=0, atol=1e-13)
    assert not total.result()[:50].any()


@pytest.mark.parametrize("order", ["columns", "part", "read-only"])
def test_tiles_of_any_layout(order):
    tile, x = _problem(33, 47, 5, "float32")
    given = {
        "columns": np.asfortranarray(tile),
        "part": np.pad(tile, 3)[3:-3, 3:-3],
        "read-only": tile.view(),
    }[order]
    given.flags.writeable = False
    found = []
    for a in (tile, given):
        total = FusedProducts(x, 80, "float64")
        total.add(a, 47, 0, transpose=True)
        found.append(total.result())
    np.testing.assert_array_equal(found[0], found[1])


def test_a_nan_is_not_lost():
    tile, x = _problem(9, 12, 2, "float32")
    tile[8, 11] = np.nan  # in the rows past the last whole four
    total = FusedProducts(x, 21, "float64")
    total.add(tile, 12, 0, transpose=True)
    assert np.flatnonzero(np.isnan(total.result()).all(axis=1)).tolist() == [11, 20]


def test_what_is_taken(monkeypatch):
    long, short = np.ones((products_module._FUSED_LENGTH, 9)), np.ones((100, 9))
    wide = np.ones((products_module._FUSED_LENGTH, products_module._FUSED_VECTORS + 1))
    assert isinstance(accumulator("float64", long, 10), FusedProducts)
    assert isinstance(accumulator("float64", short, 10), BlasProducts)
    assert isinstance(accumulator("float64", wide, 10), BlasProducts)
    assert isinstance(accumulator("float64", long, 10, mirrored=False), BlasProducts)
    # Without Numba BLAS is taken. The answer is kept for a process, so it is forgotten before and after.
    products_module._fused_installed.cache_clear()
    monkeypatch.setitem(sys.modules, "ntkpipe.linalg.fused", None)
    try:
        assert isinstance(accumulator("float64", long, 10), BlasProducts)
    finally:
        products_module._fused_installed.cache_clear()


@pytest.mark.parametrize("products", ["float32", "float64"])
def test_lanes_change_no_bit(products, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    from ntkpipe.linalg.lanes import Lanes

    monkeypatch.setattr(products_module, "_FUSED_ROWS", 20)
    tile, x = _problem(150, 90, 9, "float32")
    found = []
    for threads in (None, 3):
        lanes = Lanes()
        if threads:
            lanes._pool = ThreadPoolExecutor(threads)  # type: ignore[assignment]
        total = FusedProducts(x, 240, products, lanes)
        total.add(tile, 90, 0, transpose=True)
        found.append(total.result())
        lanes.close()
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cols", [1, 512, 1024, 1500])
def test_rows_of_the_cache(cols, dtype):
    from ntkpipe.linalg.fused import skewed

    found = skewed(9, cols, dtype)
    assert found.shape == (9, cols)
    assert not found.any()
    assert found.ctypes.data % 64 == 0
    assert found.strides[1] == found.itemsize
    assert found.strides[0] >= cols * found.itemsize
    # Nine rows begin in nine sets of 64: none evicts another one.
    assert len({k * found.strides[0] // 64 % 64 for k in range(9)}) == 9
