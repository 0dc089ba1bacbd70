"""The lower limit for the full-size run: the same arithmetic in one process, without store, scheduler or checks.

The script takes all 50,000 + 10,000 CIFAR-10 images, and the NTK and NNGP of a fully connected ReLU network of depth 3
in float32. It keeps the lower-triangle tiles in a list, runs block Lanczos with full reorthogonalisation, and recomputes
test tiles when they are used. OpenBLAS and XLA run on all cores. Compare it with `ntkpipe run` on the same images and
settings (`benchmarks/full_cifar10.py` runs both):

    python benchmarks/bare_cifar10.py --images cifar10.zip --steps ntk=110,nngp=150 --json bare.json

The steps are arguments, so that both sides make the same number of passes. The block width is 9, the rank of centred
labels.

Arithmetic per phase, n = 50,000, p = 10,000, d = 3,072, m = 9 * steps:
    gram        n^2/2 * (2 d + about 60) flops, 2 * n^2/2 * 4 bytes written
    products    2 * n^2 * 9 flops and n^2/2 * 4 bytes read per pass, per kernel
    reorth.     8 * n * m^2 / 2 flops per kernel
    test        p * n * (2 d + about 60) + 2 * 2 * p * n * (columns of weights)
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from pathlib import Path

import numpy as np
import scipy.linalg

from ntkpipe.config import DataConfig
from ntkpipe.data.dataset import load_dataset
from ntkpipe.gram.worker import compute_tile
from ntkpipe.kernels.zoo import fcn

EDGE = 2048
PANEL = 128  # rows of a tile multiplied while they are in cache


def multiply(tiles: dict[tuple[int, int], np.ndarray], x: np.ndarray, dtype: type) -> np.ndarray:
    """Multiply the matrix by vectors in one pass.

    Every stored lower tile serves both triangles, in panels that stay in cache between the two uses.
    """
    n = len(x)
    y = np.zeros_like(x)
    xd = np.ascontiguousarray(x, dtype=dtype)
    for (i, j), tile in tiles.items():
        r0, c0 = i * EDGE, j * EDGE
        for k in range(0, len(tile), PANEL):
            panel = tile[k : k + PANEL]
            if dtype is not panel.dtype.type:
                panel = panel.astype(dtype)
            rows = slice(r0 + k, r0 + k + len(panel))
            cols = slice(c0, min(c0 + EDGE, n))
            y[rows] += panel @ xd[cols]
            if i != j:
                y[cols] += panel.T @ xd[rows]
    return y


def lanczos(tiles, b: np.ndarray, steps: int, dtype: type, clock: dict[str, float]):
    """Run block Lanczos with two full reorthogonalisations and a float64 basis that is stored as rows."""
    u, s, _ = np.linalg.svd(b, full_matrices=False)
    block = u[:, s > 1e-10 * s[0]].T.copy()
    start = block @ b
    k, n = block.shape
    basis = np.empty((k * steps, n))
    projected = np.zeros((k * steps, k * steps))
    for step in range(steps):
        low, high = step * k, (step + 1) * k
        basis[low:high] = block
        began = time.perf_counter()
        w = multiply(tiles, block.T, dtype).T
        clock["products"] += time.perf_counter() - began
        began = time.perf_counter()
        h = basis[:high] @ w.T
        w = w - h.T @ basis[:high]
        again = basis[:high] @ w.T
        w -= again.T @ basis[:high]
        h += again
        projected[low:high, low:high] = (h[low:high] + h[low:high].T) / 2
        q, r = scipy.linalg.qr(w.T, mode="economic")
        if step + 1 < steps:
            projected[high : high + k, low:high] = r
            projected[low:high, high : high + k] = r.T
        block = np.ascontiguousarray(q.T)
        clock["orthogonalise"] += time.perf_counter() - began
    return basis, projected, start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="folder or zip of train/<class>/*, test/<class>/*")
    parser.add_argument("--kind", default="image_folder")
    parser.add_argument("--n-train", type=int, help="fewer training images, for a trial")
    parser.add_argument("--steps", default="ntk=110,nngp=150")
    parser.add_argument("--products", choices=("float32", "float64"), default="float32")
    parser.add_argument("--times", default="1,10,100,1e3,1e4,1e5,1e6,inf")
    parser.add_argument("--json", type=Path, help="write the seconds of every phase here")
    options = parser.parse_args()
    steps = {name: int(value) for name, value in (pair.split("=") for pair in options.steps.split(","))}
    times = [float(t) for t in options.times.split(",")]
    dtype = np.float32 if options.products == "float32" else np.float64
    seconds: dict[str, float] = {}

    began = time.perf_counter()
    data = load_dataset(DataConfig(kind=options.kind, path=options.images, train_size=options.n_train), dtype="float32")
    n = data.n_train
    x, x_test, y, labels = data.x_train[:n], data.x_test, data.y_train[:n], data.labels_test
    seconds["images"] = time.perf_counter() - began
    spec = fcn(3, w_std=2**0.5, b_std=0.1)

    began = time.perf_counter()
    stored: dict[str, dict[tuple[int, int], np.ndarray]] = {name: {} for name in steps}
    for i in range(-(-n // EDGE)):
        for j in range(i + 1):
            rows, cols = (x[k * EDGE : (k + 1) * EDGE] for k in (i, j))
            tile = compute_tile(
                spec, rows, None if i == j else cols, diagonal=i == j, dtype="float32", out_dtype="float32", pad_to=EDGE
            )
            for name, tiles in stored.items():
                tiles[i, j] = tile[name]
    seconds["gram"] = time.perf_counter() - began

    weights = {}
    c = y.shape[1]
    for name, tiles in stored.items():
        clock = {"products": 0.0, "orthogonalise": 0.0}
        basis, projected, start = lanczos(tiles, y, steps[name], dtype, clock)
        for phase, value in clock.items():
            seconds[f"{phase} {name}"] = value
        began = time.perf_counter()
        values, vectors = scipy.linalg.eigh(projected)
        first = vectors[: len(start)].T @ start
        coordinates = []
        for t in times:
            phi = 1 / values if np.isinf(t) else -np.expm1(-values * t / (n * c)) / values
            coordinates.append(vectors @ (phi[:, None] * first))
        weights[name] = (np.concatenate(coordinates, 1).T @ basis).T.astype(dtype)
        seconds[f"weights {name}"] = time.perf_counter() - began
        tiles.clear()
        del basis

    began = time.perf_counter()
    means = {name: np.zeros((len(x_test), w.shape[1])) for name, w in weights.items()}
    for i in range(-(-len(x_test) // EDGE)):
        for j in range(-(-n // EDGE)):
            rows, cols = x_test[i * EDGE : (i + 1) * EDGE], x[j * EDGE : (j + 1) * EDGE]
            tile = compute_tile(spec, rows, cols, diagonal=False, dtype="float32", out_dtype="float32", pad_to=EDGE)
            for name, w in weights.items():
                means[name][i * EDGE : (i + 1) * EDGE] += tile[name].astype(dtype) @ w[j * EDGE : (j + 1) * EDGE]
    seconds["test"] = time.perf_counter() - began
    seconds["total"] = sum(seconds.values())
    seconds["total without images"] = seconds["total"] - seconds["images"]

    for phase, value in seconds.items():
        print(f"{phase:<24}{value:9.1f} s")
    print(f"{'peak memory':<24}{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:9.2f} GiB")
    for name, mean in means.items():
        right = mean.reshape(len(x_test), len(times), c).argmax(2) == labels[:, None]
        print(name, " ".join(f"t={t:g}: {a:.4f}" for t, a in zip(times, right.mean(0), strict=True)))
    if options.json:
        options.json.write_text(json.dumps({"cores": os.cpu_count(), "steps": steps, "seconds": seconds}, indent=1))


if __name__ == "__main__":
    main()
