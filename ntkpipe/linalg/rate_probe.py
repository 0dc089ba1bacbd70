"""`python -m ntkpipe.linalg.rate_probe`: rates of dense linear algebra in one process, for `planning/measured.py`.

The first line of input is a request in JSON. The process prints `ready` when it has warmed up, measures after a second line of input,
and prints one line of JSON. So several processes can be measured at the same time, as many as will compute at the same time.

Rates use the processor time of the process, without the time that it waited for other processes. Start it with one thread, because
threads that wait for each other on a busy machine measure the load of the machine (two threads reached 0.3 GF/s, one thread 28).
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

# Number of tiles that products use in turn, so that no tile is still in a cache when it is used again.
_TILES = 4
# Number and length of the vectors for the orthogonalisation: 64 MB, which no cache holds.
_BASIS, _LENGTH = 400, 20_000


def measured(asked: dict[str, Any]) -> dict[str, float]:
    """Rates in flops per second (`copy` in bytes per second, read and written), and `busy`, the ratio of wall time to processor time.

    Args:
        asked: `size` of matrices, `outputs` (vectors of a product), and `seconds` that each rate may take.
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
        # The call also copies n^2 numbers, which adds a few percent to the time of n^3 / 3 flops.
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
    """The number of calls, and their seconds of processor time and of wall time."""
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
