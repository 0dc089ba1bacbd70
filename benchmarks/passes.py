"""Passes over a symmetric matrix in memory: fused products, BLAS, and a plain read of the same bytes by the same threads.

python benchmarks/passes.py --points 20000

A pass multiplies every stored tile and its mirror image by nine vectors. The tiles are copies of a few random tiles at
separate addresses, so that every pass reads all bytes from memory. `read` sums each tile's entries once with NumPy.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from ntkpipe.linalg.lanes import Lanes
from ntkpipe.linalg.products import Accumulator, BlasProducts, FusedProducts
from ntkpipe.tiles.grid import TileGrid

Tile = tuple[int, int, bool, np.ndarray]
"""Row and column of its first entry, whether its mirror image counts, and its entries."""


def main() -> None:
    """Print one row for each precision of tiles and products."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=20_000)
    parser.add_argument("--vectors", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    x = np.random.default_rng(0).standard_normal((asked.points, asked.vectors))
    print("tiles    products  read     BLAS     fused    fused / read   seconds a pass")
    for stored, products in (("float32", "float32"), ("float32", "float64"), ("float64", "float64")):
        bare, blas, fused = _seconds(stored, products, x, asked.repeats)
        print(f"{stored}  {products}   {bare:.3f}    {blas:.3f}    {fused:.3f}    {fused / bare:.2f}", flush=True)


def _seconds(stored: str, products: str, x: np.ndarray, repeats: int) -> tuple[float, float, float]:
    """Return the seconds of a plain read, of a pass by BLAS, and of a pass by fused products."""
    n = len(x)
    base = np.random.default_rng(1).standard_normal((2048, 2048)).astype(stored)
    tiles: list[Tile] = []
    for where in TileGrid(n, n, 2048, symmetric=True):
        tile = base[: where.shape[0], : where.shape[1]].copy()
        tiles.append((where.row_start, where.col_start, not where.is_diagonal, tile))
    lanes = Lanes()
    with lanes.open():
        found = (
            _least(lambda: lanes.each(_sum, tiles), repeats),
            _least(lambda: _pass(BlasProducts(x, n, products, lanes), tiles), repeats),
            _least(lambda: _pass(FusedProducts(x, n, products, lanes), tiles), repeats),
        )
    lanes.close()
    return found


def _sum(tile: Tile) -> None:
    tile[3].sum(dtype=tile[3].dtype)


def _pass(total: Accumulator, tiles: list[Tile]) -> None:
    for row, col, mirrored, tile in tiles:
        total.add(tile, row, col, transpose=mirrored)


def _least(call: Callable[[], None], repeats: int) -> float:
    """Return the seconds of the fastest of several calls."""
    call()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


if __name__ == "__main__":
    main()
