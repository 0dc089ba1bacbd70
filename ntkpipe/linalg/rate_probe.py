"""`python -m ntkpipe.linalg.rate_probe`: rates of dense algebra in one process, for `planning/measured.py`.

The first line of input says what is asked, the process answers `ready` when it has warmed up, and measures when a second line comes:
so that as many processes as will compute together are measured together. JSON in, one line of JSON out.

Rates count the seconds that the process was given, not those that it waited for others on the same machine. Start it with one
thread: threads that wait for each other on a busy machine measure the others (two threads made 0.3 GF/s where one made 28).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.linalg.lapack import get_lapack_funcs

from ntkpipe.linalg.products import accumulator

# Products go round so many tiles that none is in a cache when its turn comes.
_TILES = 4
# Rows of basis and length of vectors of the orthogonalisation: 64 MB, which no cache holds.
_BASIS, _LENGTH = 400, 20_000


def measured(asked: dict[str, Any]) -> dict[str, float]:
    """Rates in flops per second (`copy` in bytes per second, read and written), and `busy`, wall over given seconds.

    Args:
        asked: `size` of matrices, `outputs` (vectors of a product), `seconds` that each rate may take.
    """
    size, outputs = int(asked["size"]), int(asked["outputs"])
    rng = np.random.default_rng(0)
    square = rng.standard_normal((size, size))
    work: dict[str, tuple[float, Callable[[], Any]]] = {}
    for dtype in ("float32", "float64"):
        a = square.astype(dtype)
        work[f"gemm_{dtype}"] = 2.0 * size**3, lambda a=a: a @ a
        definite = np.asfortranarray(a @ a.T + size * np.eye(size, dtype=dtype))
        (potrf,) = get_lapack_funcs(("potrf",), (definite,))
        # A copy of n^2 numbers besides n^3 / 3 flops: a few percent.
        work[f"cholesky_{dtype}"] = size**3 / 3, lambda a=definite, f=potrf: f(a, lower=1)
    tiles = [rng.standard_normal((2 * size, 2 * size)).astype(np.float32) for _ in range(_TILES)]
    x = rng.standard_normal((4 * size, outputs))
    for products in ("float32", "float64"):

        def multiply(products: str = products) -> None:
            total = accumulator(products, x, 4 * size)
            for tile in tiles:
                total.add(tile, 0, 2 * size, transpose=True)

        work[f"products_{products}"] = _TILES * 4.0 * (2 * size) ** 2 * outputs, multiply
    basis, w = rng.standard_normal((_BASIS, _LENGTH)), rng.standard_normal((outputs, _LENGTH))

    def orthogonalise() -> None:
        w.__isub__((w @ basis.T / _LENGTH) @ basis)

    work["orthogonalise"] = 4.0 * _BASIS * _LENGTH * outputs, orthogonalise
    work["copy"] = 2.0 * tiles[0].nbytes, lambda: np.copyto(tiles[0], tiles[1])
    for _, call in work.values():
        call()
    print("ready", flush=True)
    sys.stdin.readline()
    found, given, wall = {}, 0.0, 0.0
    for name, (amount, call) in work.items():
        calls, cpu, clock = _repeated(call, asked["seconds"])
        found[name] = amount * calls / cpu
        given, wall = given + cpu, wall + clock
    return {**found, "busy": wall / given}


def _repeated(call: Callable[[], Any], seconds: float) -> tuple[int, float, float]:
    """Calls, and the processor's and the wall's seconds that they took."""
    calls, cpu, wall = 0, time.process_time(), time.perf_counter()
    while True:
        call()
        calls += 1
        took = time.process_time() - cpu, time.perf_counter() - wall
        if min(took) >= seconds or took[1] >= 4 * seconds:
            return calls, max(took[0], 1e-6), max(took[1], 1e-6)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    print(json.dumps(measured(json.loads(sys.stdin.readline()))), flush=True)
