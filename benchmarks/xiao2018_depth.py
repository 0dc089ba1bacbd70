"""Accuracy and kernel of 10 to 10,000 layers on and off the critical line: the figure of docs/propagation.md.

`python benchmarks/xiao2018_depth.py --figure docs/figures/xiao2018_depth.png` predicts handwritten digits. With `--images FILE.npz`
(x_train, y_train, x_test, y_test) it predicts other images. It takes a few minutes on one core. `--rows FILE.json` keeps
every finished depth, and the same command then continues.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import ntkpipe as nk

B_STD = 0.05**0.5
LINES = {"ordered": 1.05, "critical": 1.3758390073**0.5, "chaotic": 1.35}
DEPTHS = (10, 30, 100, 300, 1000, 10_000)
COLOURS = {"ordered": "#4477aa", "critical": "#228833", "chaotic": "#cc6677"}


def learnt(kernel: np.ndarray, targets: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return the outputs at the test points after training; directions below rounding are not learnt."""
    values, vectors = np.linalg.eigh(kernel)
    kept = values > 1e-12 * values[-1]
    return test @ (vectors[:, kept] @ ((vectors[:, kept].T @ targets) / values[kept, None]))


def measured(depth: int, w_std: float, data: nk.Dataset) -> tuple[float, float]:
    """Return the test accuracy of the NTK, and the ratio of its mean off-diagonal to its mean diagonal entry.

    Both are NaN if numbers overflow.
    """
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
    parser.add_argument("--images", help="an .npz; handwritten digits unless given")
    parser.add_argument("--train", type=int, default=300)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--lines", nargs="+", choices=list(LINES), default=list(LINES))
    parser.add_argument(
        "--rows", type=Path, help="a JSON file of the depths that are done; with one, depths are measured once"
    )
    parser.add_argument("--deepest-off", type=int, default=DEPTHS[-1], help="most layers off the critical line")
    path = parser.parse_args()
    done = json.loads(path.rows.read_text()) if path.rows and path.rows.exists() else {}
    sizes = {"train_size": path.train, "test_size": path.test, "balanced": True}
    data = nk.load_dataset("npz", path=path.images, **sizes) if path.images else nk.load_dataset("digits", **sizes)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    print("phase     w_std   depth  accuracy  off / diagonal  seconds")
    for name in path.lines:
        w_std, rows = LINES[name], []
        depths = [depth for depth in DEPTHS if name == "critical" or depth <= path.deepest_off]
        for depth in depths:
            key = f"{name} {depth} {data.n} {data.p} {path.images}"
            if key not in done:
                start = time.perf_counter()
                made = measured(depth, w_std, data)
                done[key] = [*made, time.perf_counter() - start]
                if path.rows:
                    path.rows.write_text(json.dumps(done))
            accuracy, ratio, seconds = done[key]
            rows.append((accuracy, ratio))
            print(f"{name:8}  {w_std:.4f}  {depth:6}  {accuracy:8.3f}  {ratio:14.4f}  {seconds:7.1f}", flush=True)
        accuracy, ratio = np.transpose(rows)
        for axes, values in ((left, accuracy), (right, ratio)):
            axes.plot(depths, values, "o-", color=COLOURS[name], label=f"{name}, w_std {w_std:.3f}", markersize=4)
    left.axhline(0.1, color="#999999", linewidth=0.8, linestyle=(0, (4, 2)))
    right.axhline(1 / 3, color="#999999", linewidth=0.8, linestyle=(0, (4, 2)))
    left.set(xscale="log", xlabel="layers", ylabel="test accuracy", ylim=(0, 1))
    right.set(xscale="log", xlabel="layers", ylabel="NTK off its diagonal / on it", ylim=(-0.05, 1.05))
    left.legend(loc="best", frameon=False, fontsize=8)
    figure.savefig(path.figure, dpi=150)


if __name__ == "__main__":
    main()
