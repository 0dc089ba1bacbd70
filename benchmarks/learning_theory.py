"""Predicted and measured squared errors of kernel regression on real images.

The spectrum of one Gram matrix of M images predicts the errors of training sets of n < M of them, tested on the others.
The measured errors come from random training sets that are solved by Cholesky factorisation. Up to n = M / 4, both
should agree within 4%.

    python benchmarks/learning_theory.py --data cifar10_subset.npz --points 3000

`--lanczos` estimates the spectrum from products with vectors only, as for matrices that are too large for LAPACK.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
import scipy.linalg

import ntkpipe as nk

AGREEMENT = 0.04


def measured(
    matrix: np.ndarray, targets: np.ndarray, n: int, ridge: float, repetitions: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Return the mean squared error on the other points over random training sets, and its standard deviation."""
    found = []
    for _ in range(repetitions):
        order = rng.permutation(len(matrix))
        rows, rest = order[:n], order[n:]
        system = matrix[np.ix_(rows, rows)] + ridge * np.eye(n)
        weights = scipy.linalg.solve(system, targets[rows], assume_a="pos")
        found.append(np.mean((matrix[np.ix_(rest, rows)] @ weights - targets[rest]) ** 2))
    return float(np.mean(found)), float(np.std(found, ddof=1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="an .npz of images, as data=npz reads it")
    parser.add_argument("--points", type=int, default=3000)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--ridge", type=float, default=1e-3, help="relative to the mean of the diagonal")
    parser.add_argument("--repetitions", type=int, default=8)
    parser.add_argument("--lanczos", action="store_true")
    asked = parser.parse_args()
    data = nk.load_dataset("npz", path=asked.data, train_size=asked.points, test_size=10)
    gram = nk.Gram(nk.zoo.fcn(depth=asked.depth), data)
    gram.compute(progress=False)
    kernel = gram.train("ntk")
    began = time.monotonic()
    dense = 0 if asked.lanczos else asked.points
    found = nk.spectrum(kernel, data.targets, ridges=[asked.ridge], dense=dense, progress=False)
    passes = "dense" if found.is_dense else f"{found.measure.passes} passes"
    seconds = time.monotonic() - began
    print(
        f"{asked.points} images, NTK of depth {asked.depth}, ridge {asked.ridge:g}: spectrum in {seconds:.1f} s ({passes})"
    )
    matrix, targets = kernel.to_numpy().astype(np.float64), np.asarray(data.targets, np.float64)
    rng = np.random.default_rng(0)
    print(f"{'n':>6} {'M / n':>6} {'predicted':>10} {'measured':>10} {'± se':>8} {'one set':>8} {'difference':>11}")
    worst = 0.0
    for one in found.learning_curve([asked.points // k for k in (64, 32, 16, 8, 4, 2)]):
        value, between = measured(matrix, targets, one.n, found.absolute_ridges[0], asked.repetitions, rng)
        off = one.test_mse / value - 1.0
        if 4 * one.n <= asked.points:
            worst = max(worst, abs(off))
        error = between / asked.repetitions**0.5
        print(
            f"{one.n:>6} {asked.points / one.n:>6.1f} {one.test_mse:>10.5f} {value:>10.5f} {error:>8.5f} "
            f"{between / value:>8.1%} {off:>+11.2%}",
            flush=True,
        )
    checked = found.cross_validated()
    print(
        f"at all {asked.points}: GCV {checked.gcv:.5f}, leave-one-out {checked.leave_one_out:.5f}, spread {checked.spread:.2f}"
    )
    print(f"largest difference up to n = M / 4: {worst:.2%} (wanted: {AGREEMENT:.0%})")
    return 0 if worst <= AGREEMENT else 1


if __name__ == "__main__":
    sys.exit(main())
