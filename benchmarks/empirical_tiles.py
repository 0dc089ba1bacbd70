"""Tiles of a dense network's empirical NTK against the matrix products they are made of.

python benchmarks/empirical_tiles.py [--images 2048] [--width 1024] [--outputs 1]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ntkpipe import finite


def best(run: Callable[[], Any], tries: int = 3) -> float:
    """Seconds of the fastest try, after one that compiles."""
    jax.block_until_ready(run())
    seconds = []
    for _ in range(tries):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--outputs", type=int, default=1)
    given = parser.parse_args()
    dense = {"op": "dense", "w_std": 1.4, "b_std": 0.1}
    hidden = [dense | {"features": given.width}, {"op": "relu"}]
    spec = [{"op": "flatten"}, *hidden, *hidden, *hidden, dense | {"features": given.outputs}]
    x = np.random.default_rng(0).standard_normal((given.images, 32, 32, 3)).astype(np.float32)
    weights = finite.init(spec, x.shape[1:])
    prepared = finite.prepare(spec, weights, x)
    factors = [array for part in prepared.parts for array in part]
    in_numpy = [np.asarray(array) for array in factors]
    products = jax.jit(lambda arrays: [array @ array.T for array in arrays])
    rows = {
        "prepare": best(lambda: finite.prepare(spec, weights, x).parts, 1),
        "tile": best(lambda: finite.tile(prepared, prepared).ntk),
        "its products in JAX": best(lambda: products(factors)),
        "its products in NumPy": best(lambda: [array @ array.T for array in in_numpy]),
    }
    for name, seconds in rows.items():
        print(f"{name:<24}{seconds:8.3f} s")
    print(f"tile over products in JAX: {rows['tile'] / rows['its products in JAX']:.2f}")


if __name__ == "__main__":
    main()
