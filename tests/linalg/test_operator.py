from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from ntkpipe.errors import ConfigError, IncompleteError
from ntkpipe.linalg import products as products_module
from ntkpipe.linalg.assemble import assemble
from ntkpipe.linalg.basis import MemoryBasis
from ntkpipe.linalg.lanczos import block_lanczos
from ntkpipe.linalg.operator import (
    DenseOperator,
    Operator,
    balanced_shares,
    rectangular_operator,
    rectangular_product,
    tile_operator,
)
from ntkpipe.linalg.tile_worker import TileWorker
from ntkpipe.tasks.serial import SerialExecutor
from ntkpipe.tiles.grid import TileGrid
from ntkpipe.tiles.matrix import InMemoryTiles

EPS = np.finfo(np.float64).eps
EPS32 = float(np.finfo(np.float32).eps)


def symmetric(n: int, seed: int = 0, dtype: str = "float64") -> np.ndarray:
    a = np.random.default_rng(seed).normal(size=(n, n))
    return (a + a.T).astype(dtype)


def lower_tiles(a: np.ndarray, edge: int) -> InMemoryTiles:
    """Tiles of `a` whose upper triangle is never a number: proof that nobody reads it."""
    hidden = a.copy()
    hidden[np.triu_indices(len(a), 1)] = np.nan
    return InMemoryTiles(hidden, TileGrid(len(a), len(a), edge, symmetric=True))


@settings(deadline=None, max_examples=25)
@given(
    n=st.integers(1, 90),
    edge=st.integers(1, 40),
    workers=st.integers(1, 4),
    k=st.integers(1, 12),
    kept=st.floats(0, 1.2),
)
def test_products_rows_and_diagonal_equal_the_dense_matrix(n, edge, workers, k, kept):
    a = symmetric(n)
    x = np.random.default_rng(1).normal(size=(n, k))
    memory = int(kept * a.nbytes)
    with tile_operator(lower_tiles(a, edge), SerialExecutor(workers), memory_bytes=memory, device="cpu") as operator:
        assert isinstance(operator, Operator)
        assert operator.n == n
        bound = 4 * n * EPS * np.abs(a).sum(1).max() * np.abs(x).max()
        for _ in range(2):  # the second pass finds tiles in memory
            np.testing.assert_allclose(operator.matmul(x), a @ x, rtol=0, atol=bound)
        indices = np.random.default_rng(2).integers(0, n, 5)
        np.testing.assert_array_equal(operator.rows(indices), a[indices])
        np.testing.assert_array_equal(operator.diagonal(), a.diagonal())


@pytest.mark.parametrize("products", ["float32", "float64"])
@pytest.mark.parametrize("device", ["cpu", "accelerator"])
def test_float32_tiles_in_either_precision(products, device):
    n = 300
    a = symmetric(n, dtype="float32")
    x = np.random.default_rng(1).normal(size=(n, 9))
    operator = tile_operator(
        lower_tiles(a, 100), SerialExecutor(2), products=products, memory_bytes=10**7, device=device
    )
    size = np.linalg.norm(a.astype(np.float64), axis=1).max() * np.linalg.norm(x, axis=0).max()
    bound = (n * EPS if products == "float64" else 4 * EPS32) * size
    expected = a.astype(np.float64) @ x
    for _ in range(2):
        np.testing.assert_allclose(operator.matmul(x), expected, rtol=0, atol=bound)
    dense = DenseOperator(a, products)
    np.testing.assert_allclose(dense.matmul(x), expected, rtol=0, atol=bound)
    np.testing.assert_array_equal(operator.rows([3, 250]), a[[3, 250]])


@pytest.mark.parametrize("products", ["float32", "float64"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_streaming_and_caching_agree_in_every_bit(products, dtype):
    a = symmetric(230, dtype=dtype)
    x = np.random.default_rng(1).normal(size=(230, 7))
    results = []
    for memory in (0, a.nbytes // 4, 10 * a.nbytes):
        with tile_operator(lower_tiles(a, 50), SerialExecutor(2), products=products, memory_bytes=memory) as operator:
            results += [operator.matmul(x), operator.matmul(x)]
            kept, total = operator.kept()
            assert total == 15
            assert (kept == 0) if memory == 0 else (kept == 15) if memory > 2 * a.nbytes else (0 < kept < 15)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_every_tile_is_read_once_per_pass_and_kept_ones_never_again():
    reads: list[tuple[int, int]] = []

    class Counting(InMemoryTiles):
        def read(self, i: int, j: int) -> np.ndarray:
            reads.append((i, j))
            return super().read(i, j)

    a = symmetric(100)
    matrix = Counting(a, TileGrid(100, 100, 20, symmetric=True))
    worker = TileWorker(matrix, [(t.i, t.j) for t in matrix.grid], "float64", 0, "cpu")
    worker.multiply(np.ones((100, 1)))
    assert sorted(reads) == [(t.i, t.j) for t in matrix.grid]
    half = TileWorker(matrix, [(t.i, t.j) for t in matrix.grid], "float64", 8 * 20 * 20 * 7, "cpu")
    half.multiply(np.ones((100, 1)))
    reads.clear()
    half.multiply(np.ones((100, 1)))
    assert half.kept() == (7, 15)
    assert len(reads) == len(set(reads)) == 8


def test_an_asymmetric_diagonal_tile_counts_by_its_lower_triangle():
    a = symmetric(40)
    skewed = a + np.triu(np.full((40, 40), 1e-7), 1)
    matrix = InMemoryTiles(skewed, TileGrid(40, 40, 16, symmetric=True))
    np.testing.assert_array_equal(assemble(matrix), a)
    operator = tile_operator(matrix, SerialExecutor(), device="cpu")
    np.testing.assert_array_equal(operator.rows(range(40)), a)


def test_assemble_fills_both_triangles_and_rectangles():
    a = symmetric(37, dtype="float32")
    assert assemble(lower_tiles(a, 10)).dtype == np.float64
    np.testing.assert_array_equal(assemble(lower_tiles(a, 10), np.float32), a)
    b = np.random.default_rng(0).normal(size=(13, 37))
    np.testing.assert_array_equal(assemble(InMemoryTiles(b, TileGrid(13, 37, 10))), b)


@pytest.mark.parametrize("workers", [1, 3])
def test_rectangles(workers):
    b = np.random.default_rng(0).normal(size=(31, 77))
    w = np.random.default_rng(1).normal(size=(77, 20))
    matrix = InMemoryTiles(b, TileGrid(31, 77, 10))
    bound = 77 * EPS * np.linalg.norm(b, axis=1).max() * np.linalg.norm(w, axis=0).max()
    np.testing.assert_allclose(rectangular_product(matrix, SerialExecutor(workers), w), b @ w, rtol=0, atol=bound)
    with rectangular_operator(matrix, SerialExecutor(workers)) as operator:
        assert operator.shape == (31, 77)
        np.testing.assert_array_equal(operator.rows([30, 0, 30]), b[[30, 0, 30]])
        with pytest.raises(IndexError, match="31 rows"):
            operator.rows([31])
        with pytest.raises(ValueError, match=r"\(31, 77\)"):
            operator.matmul(np.ones((31, 2)))


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 400), edge=st.integers(1, 60), workers=st.integers(1, 7))
def test_shares_cover_every_tile_once_and_are_balanced(n, edge, workers):
    grid = TileGrid(n, n, edge, symmetric=True)
    shares = balanced_shares(grid, workers, symmetric=True)
    assert sorted(address for share in shares for address in share) == [(t.i, t.j) for t in grid]

    def cost(share):
        tiles = [grid.tile(i, j) for i, j in share]
        return sum(t.shape[0] * t.shape[1] * (1 if t.is_diagonal else 2) for t in tiles)

    costs = [cost(share) for share in shares]
    assert max(costs) - min(costs) <= 2 * min(edge, n) ** 2


@pytest.mark.parametrize("edge", [17, 64, 300])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_lanczos_does_not_depend_on_the_tiling(edge, workers, make_matrix, make_labels):
    n = 130
    a, b = make_matrix(np.linspace(1, 50, n)), make_labels(n, 5)
    dense = block_lanczos(DenseOperator(a), b, max_steps=8)
    with tile_operator(lower_tiles(a, edge), SerialExecutor(workers)) as operator:
        tiled = block_lanczos(operator, b, max_steps=8)
    # Rounding grows as directions converge; eight steps on this spectrum leave the basis far from converged.
    np.testing.assert_allclose(tiled.projected, dense.projected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(tiled.basis, dense.basis, rtol=0, atol=1e-10)


def test_an_error_while_reading_reaches_the_caller():
    class Missing(InMemoryTiles):
        def read(self, i: int, j: int) -> np.ndarray:
            if (i, j) == (2, 1):
                raise IncompleteError("tile (2, 1) is not computed: run `ntkpipe gram`")
            return super().read(i, j)

    matrix = Missing(symmetric(50), TileGrid(50, 50, 10, symmetric=True))
    with tile_operator(matrix, SerialExecutor(2)) as operator, pytest.raises(IncompleteError, match=r"\(2, 1\)"):
        operator.matmul(np.ones((50, 1)))


def test_wrong_use_is_refused():
    a = symmetric(10)
    with pytest.raises(ConfigError, match="symmetric"):
        tile_operator(InMemoryTiles(a, TileGrid(10, 10, 5)), SerialExecutor())
    with pytest.raises(ValueError, match="square"):
        DenseOperator(a[:5])
    with pytest.raises(ValueError, match=r"solver\.products"):
        DenseOperator(a, "float16").matmul(np.ones((10, 1)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("memory", [0, 10**7])
def test_one_product_in_float64_by_an_operator_of_float32_products(dtype, memory):
    a = symmetric(120, dtype=dtype)
    x = np.random.default_rng(1).normal(size=(120, 4))
    exact = a.astype(np.float64) @ x
    size = np.linalg.norm(a.astype(np.float64), axis=1).max() * np.linalg.norm(x, axis=0).max()
    with tile_operator(lower_tiles(a, 50), SerialExecutor(2), products="float32", memory_bytes=memory) as operator:
        before = operator.matmul(x)
        np.testing.assert_allclose(operator.matmul(x, products="float64"), exact, rtol=0, atol=120 * EPS * size)
        np.testing.assert_array_equal(operator.matmul(x), before)
        assert np.abs(before - exact).max() > 120 * EPS * size


@pytest.mark.parametrize("products", ["float32", "float64"])
def test_lanes_that_share_a_tile_change_no_bit(products, monkeypatch):
    for name in ("_PANEL_BYTES_32", "_PANEL_BYTES_64"):
        monkeypatch.setattr(products_module, name, 100 * 600 * (4 if "32" in name else 8))  # six panels of 100 rows
    rng = np.random.default_rng(7)
    dense = rng.standard_normal((700, 700)).astype(np.float32)
    tiles = InMemoryTiles(dense + dense.T, TileGrid(700, 700, 600, symmetric=True))
    x = rng.standard_normal((700, 3))
    found = []
    for threads in (1, 3):
        with (
            threadpool_limits(threads, user_api="blas"),
            tile_operator(tiles, SerialExecutor(), products=products) as a,
        ):
            found.append(a.matmul(x))
    np.testing.assert_array_equal(found[0], found[1])
    exact = (dense + dense.T).astype(np.float64) @ x
    np.testing.assert_allclose(found[0], exact, rtol=0, atol=1e-4 if products == "float32" else 1e-11)


def test_a_basis_removes_the_same_with_any_number_of_lanes():
    rng = np.random.default_rng(8)
    rows = np.linalg.qr(rng.standard_normal((9000, 300)))[0].T.copy()
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads, user_api="blas"):
            w = np.random.default_rng(9).standard_normal((4, 9000))
            found.append((MemoryBasis.of(rows).remove(w), w))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(rows @ found[0][1].T, 0, atol=1e-12)
