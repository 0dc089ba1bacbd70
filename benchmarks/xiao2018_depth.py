"""Accuracy and kernel of 10 to 10,000 layers on and off the critical line, on handwritten digits: the figure of docs/propagation.md.

`python benchmarks/xiao2018_depth.py --figure docs/figures/xiao2018_depth.png` takes some minutes on one core.
"""

from __future__ import annotations

import argparse
import time

import matplotlib.pyplot as plt
import numpy as np

import ntkpipe as nk

B_STD = 0.05**0.5
LINES = {"ordered": 1.05, "critical": 1.3758390073**0.5, "chaotic": 1.35}
DEPTHS = (10, 30, 100, 300, 1000, 10_000)
COLOURS = {"ordered": "#4477aa", "critical": "#228833", "chaotic": "#cc6677"}


def learnt(kernel: np.ndarray, targets: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Outputs of test points at the end of training; what the kernel holds below rounding is not learnt."""
    values, vectors = np.linalg.eigh(kernel)
    kept = values > 1e-12 * values[-1]
    return test @ (vectors[:, kept] @ ((vectors[:, kept].T @ targets) / values[kept, None]))


def measured(depth: int, w_std: float, data: nk.Dataset) -> tuple[float, float]:
    """Test accuracy of the NTK, and the mean of its entries off the diagonal over those on it; NaN where numbers overflow."""
    points = data.prepared("float64")
    x, x_test = points.x_train[: data.n], points.x_test[: data.p]
    network = nk.zoo.fcn(depth=depth, activation="erf", w_std=w_std, b_std=B_STD)
    train, test = network(x).ntk, network(x_test, x).ntk
    if not (np.isfinite(train).all() and np.isfinite(test).all()):
        return np.nan, np.nan
    scale = np.diagonal(train).mean()
    guess = learnt(train / scale, data.targets, test / scale).argmax(axis=1)
    off = train[~np.eye(len(train), dtype=bool)].mean()
    return float((guess == points.labels_test[: data.p]).mean()), float(off / scale)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--figure", required=True)
    parser.add_argument("--train", type=int, default=300)
    parser.add_argument("--test", type=int, default=200)
    path = parser.parse_args()
    data = nk.load_dataset("digits", train_size=path.train, test_size=path.test, balanced=True)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    print("phase     w_std   depth  accuracy  off / diagonal  seconds")
    for name, w_std in LINES.items():
        rows = []
        for depth in DEPTHS:
            start = time.perf_counter()
            rows.append(measured(depth, w_std, data))
            seconds = time.perf_counter() - start
            print(
                f"{name:8}  {w_std:.4f}  {depth:6}  {rows[-1][0]:8.3f}  {rows[-1][1]:14.4f}  {seconds:7.1f}", flush=True
            )
        accuracy, ratio = np.transpose(rows)
        for axes, values in ((left, accuracy), (right, ratio)):
            axes.plot(DEPTHS, values, "o-", color=COLOURS[name], label=f"{name}, w_std {w_std:.3f}", markersize=4)
    left.axhline(0.1, color="#999999", linewidth=0.8, linestyle=(0, (4, 2)))
    right.axhline(1 / 3, color="#999999", linewidth=0.8, linestyle=(0, (4, 2)))
    left.set(xscale="log", xlabel="layers", ylabel="test accuracy", ylim=(0, 1))
    right.set(xscale="log", xlabel="layers", ylabel="NTK off its diagonal / on it", ylim=(-0.05, 1.05))
    left.legend(loc="lower left", frameon=False, fontsize=8)
    figure.savefig(path.figure, dpi=150)


if __name__ == "__main__":
    main()
