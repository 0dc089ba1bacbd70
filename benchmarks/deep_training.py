"""A finite CNN of 10,000 layers trains on real images on the critical line, and not beside it: docs/propagation.md.

`python benchmarks/deep_training.py --images cifar10_subset.npz` takes images of two classes, shrinks them to 3 x 3 pixels and
takes a few steps of gradient descent with erf layers of 8 channels and delta-orthogonal weights. The rate is a quarter of the
largest stable one of the network's own kernel at the start.
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ntkpipe as nk
from ntkpipe import finite
from ntkpipe.finite.network import network
from ntkpipe.kernels.accelerator import precision_context
from ntkpipe.propagation.maps import activation_maps

WIDTH, SIDE, STEPS = 8, 3, 4
LINES = {"ordered": 0.9, "critical": 1.0, "chaotic": 1.1}
"""The deviation of the weights over the critical one."""


def small_images(path: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `count` images of each of two classes, `(2 count, 3, 3, 3)` of unit mean square, and labels of -1 and 1."""
    data = nk.load_dataset("npz", path=path, train_size=50 * count, test_size=10, balanced=True)
    points = data.prepared("float64")
    x, labels = np.asarray(points.x_train), data.targets.argmax(axis=1)
    rows = np.concatenate([np.flatnonzero(labels == one)[:count] for one in (0, 1)])
    x = x[rows].reshape(len(rows), SIDE + 1, 8, SIDE + 1, 8, -1).mean(axis=(2, 4))[:, :SIDE, :SIDE]
    x /= np.sqrt(np.mean(x**2, axis=(1, 2, 3), keepdims=True))
    return x, np.where(labels[rows] == 0, -1.0, 1.0)[:, None]


def trained(depth: int, factor: float, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Return the NTK of the network at its start, `(n, n)`, and the losses before each step."""
    q = 1.0 / depth
    made = activation_maps("erf").squares(q)
    w_std, b_std = float(made.dot) ** -0.5, float(np.sqrt(q - float(made.value) / float(made.dot)))
    conv: dict[str, Any] = {"op": "conv", "features": WIDTH, "filter": [3, 3], "padding": "CIRCULAR", "b_std": b_std}
    spec = [
        conv | {"w_std": float(np.sqrt(q - b_std**2))},
        {"op": "repeat", "times": depth, "layers": [{"op": "erf"}, conv | {"w_std": factor * w_std}]},
        {"op": "global_avg_pool"},
        {"op": "dense", "features": 1, "w_std": depth**0.5},
    ]
    whole, n = network(spec, x.shape[1:]), len(x)
    with precision_context(np.float64):
        weights = finite.init(spec, x.shape[1:], initialiser="delta_orthogonal", dtype=np.float64)

        @jax.jit
        def pulled(weights: Any, residuals: Any) -> tuple[Any, Any]:
            out, back = jax.vjp(lambda w: whole.forward(w, x)[0], weights)
            return out, back(out - y if residuals is None else residuals)[0]

        rows = [jax.tree.leaves(pulled(weights, jnp.asarray(row)[:, None])[1]) for row in np.eye(n)]
        kernel = np.array([[sum(float(jnp.vdot(a, b)) for a, b in zip(r, s, strict=True)) for s in rows] for r in rows])
        if not np.isfinite(kernel).all():
            return kernel, []
        rate, losses = 0.25 * 2.0 / np.linalg.eigvalsh(kernel)[-1], []
        for _ in range(STEPS + 1):
            out, gradient = pulled(weights, None)
            losses.append(float(0.5 * np.mean((np.asarray(out) - y) ** 2)))
            weights = jax.tree.map(lambda w, g: w - rate * g, weights, gradient)
    return kernel, losses


def main() -> None:
    """Train on and beside the critical line, and print losses."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--images", required=True, help="an .npz of 32 x 32 images with x_train, y_train, x_test, y_test"
    )
    parser.add_argument("--depth", type=int, default=10_000)
    parser.add_argument("--count", type=int, default=2, help="images of each class")
    asked = parser.parse_args()
    x, y = small_images(asked.images, asked.count)
    for name, factor in LINES.items():
        kernel, losses = trained(asked.depth, factor, x, y)
        scale = np.diagonal(kernel).mean()
        off = kernel[~np.eye(len(x), dtype=bool)].mean() / scale
        said = ", ".join(f"{loss:.4g}" for loss in losses) or "gradients overflow"
        print(f"{name:8}  {asked.depth} layers  NTK {scale:.4g}, off / diagonal {off:.6g}  losses {said}", flush=True)


if __name__ == "__main__":
    main()
