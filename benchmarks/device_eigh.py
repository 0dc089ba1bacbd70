"""Seconds of a dense eigendecomposition in float64 on JAX's default device and by LAPACK on the host.

    python benchmarks/device_eigh.py --sizes 4000,10000,20000 [--host 10000]

The matrix has eigenvalues from 1e-8 to 1. The rate counts 9 n^3 operations. "residual" is the largest entry of `A V - V diag(w)`,
and "orthogonality" that of `V^T V - I`, both on the host. Times include the transfers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import jax
import numpy as np

from ntkpipe.linalg.device_eigh import device_eigh
from ntkpipe.linalg.eigh import Eigensystem

Decompose = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray] | None]


def main() -> None:
    """One row for each size and place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000,2000", help="rows of the matrices")
    parser.add_argument("--host", type=int, default=4000, help="largest size that LAPACK decomposes as well")
    asked = parser.parse_args()
    print("n       where         seconds   GF/s     residual   orthogonality")
    for n in map(int, asked.sizes.split(",")):
        matrix = _matrix(n)
        _row(n, jax.devices()[0].device_kind, device_eigh, matrix)
        if n <= asked.host:
            _row(n, "LAPACK", _lapack, matrix)


def _matrix(n: int) -> np.ndarray:
    """A symmetric matrix with eigenvalues from 1e-8 to 1: a diagonal one between three reflections."""
    rng, matrix = np.random.default_rng(0), np.diag(np.geomspace(1e-8, 1.0, n))
    for _ in range(3):
        v = rng.standard_normal(n)
        v /= np.linalg.norm(v)
        matrix -= 2.0 * np.outer(v, v @ matrix)
        matrix -= 2.0 * np.outer(matrix @ v, v)
    return 0.5 * (matrix + matrix.T)


def _lapack(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found = Eigensystem.of(matrix)
    return found.values, found.vectors


def _row(n: int, where: str, decompose: Decompose, matrix: np.ndarray) -> None:
    """Print the second of two calls; the first one compiles."""
    decompose(matrix)
    start = time.perf_counter()
    found = decompose(matrix)
    seconds = time.perf_counter() - start
    if found is None:
        print(f"{n:<7} {where:<13} does not fit into the device's memory")
        return
    values, vectors = found
    residual = np.abs(matrix @ vectors - vectors * values).max()
    off = np.abs(vectors.T @ vectors - np.eye(n)).max()
    print(f"{n:<7} {where:<13} {seconds:<9.2f} {9 * n**3 / seconds / 1e9:<8.0f} {residual:<10.1e} {off:.1e}")


if __name__ == "__main__":
    main()
