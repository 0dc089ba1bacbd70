"""Tiles of a finite network's NTK compared with their matrix products, with torch.func and with neural-tangents.

python benchmarks/empirical_tiles.py [--network dense|conv] [--images 2048] [--width 1024] [--outputs 1]
                                     [--torch PYTHON] [--peer PYTHON] [--rounds 3]

The kernels are traces over outputs in float32 for images of 32 x 32 x 3. `--torch` and `--peer` name interpreters of
environments with torch and neural-tangents. Every side is then a separate process, and all are called in turn (see
`peer.py`). Gradients of 2,048 images do not fit into memory, so use `--images 64` there. Give all sides the same cores:
`taskset -c 0 python benchmarks/empirical_tiles.py ...`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from peer import Server, quartiles

from ntkpipe import finite

_OURS = """
import json, sys
import numpy as np
from ntkpipe import finite
spec, n = json.loads(sys.argv[1]), int(sys.argv[2])
x = np.random.default_rng(0).standard_normal((2 * n, 32, 32, 3)).astype(np.float32)
weights = finite.init(spec, x.shape[1:])
def evaluate(_):
    rows, columns = (finite.prepare(spec, weights, part) for part in (x[:n], x[n:]))
    np.asarray(finite.tile(rows, columns).ntk)
evaluate("")
"""

_TORCH = """
import json, sys
import numpy as np, torch
from torch import nn
from torch.func import functional_call, jacrev, vmap
spec, n = json.loads(sys.argv[1]), int(sys.argv[2])
layers, size, channels = [], 32 * 32 * 3, 3
for layer in spec:
    if layer["op"] == "dense":
        layers.append(nn.Linear(size, layer["features"])); size = layer["features"]
    elif layer["op"] == "conv":
        layers.append(nn.Conv2d(channels, layer["features"], 3, padding="same")); channels = layer["features"]; size = 1024 * channels
    elif layer["op"] == "relu":
        layers.append(nn.ReLU())
    elif layer["op"] == "flatten":
        layers.append(nn.Flatten())
network = nn.Sequential(*layers)
parameters = {k: v.detach() for k, v in network.named_parameters()}
x = torch.randn(2 * n, 3, 32, 32)
def outputs(parameters, point):
    return functional_call(network, parameters, (point[None],))[0]
def evaluate(_):
    gradients = vmap(jacrev(outputs), (None, 0))
    rows, columns = (gradients(parameters, part) for part in (x[:n], x[n:]))
    total = 0
    for name, own in rows.items():
        total = total + torch.einsum("naf,maf->nm", own.flatten(2), columns[name].flatten(2))
evaluate("")
"""

_PEER = """
import json, sys
import jax, numpy as np
# Its structured derivatives look for two names where jax 0.4.30 no longer has them.
from jax._src import source_info_util
from jax.interpreters import ad
ad.source_info_util, ad.config = source_info_util, jax.config
import neural_tangents as nt
from neural_tangents import stax
spec, n, way = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
layers = []
for layer in spec:
    if layer["op"] == "dense":
        layers.append(stax.Dense(layer["features"], 1.4, 0.1))
    elif layer["op"] == "conv":
        layers.append(stax.Conv(layer["features"], (3, 3), padding="SAME", W_std=1.4, b_std=0.1))
    elif layer["op"] == "relu":
        layers.append(stax.Relu())
    elif layer["op"] == "flatten":
        layers.append(stax.Flatten())
init, apply, _ = stax.serial(*layers)
x = np.random.default_rng(0).standard_normal((2 * n, 32, 32, 3)).astype(np.float32)
_, parameters = init(jax.random.PRNGKey(0), (-1, 32, 32, 3))
kernel = jax.jit(nt.empirical_ntk_fn(
    apply, trace_axes=(-1,), vmap_axes=0, implementation=getattr(nt.NtkImplementation, way)
))
def evaluate(_):
    kernel(x[:n], x[n:], parameters).block_until_ready()
evaluate("")
"""

_WAYS = ("JACOBIAN_CONTRACTION", "NTK_VECTOR_PRODUCTS", "STRUCTURED_DERIVATIVES")


def layers(network: str, width: int, outputs: int) -> list[dict[str, Any]]:
    """Return the spec of three hidden layers, dense or convolutional, and a dense readout."""
    scales = {"w_std": 1.4, "b_std": 0.1}
    dense = {"op": "dense", **scales}
    if network == "dense":
        hidden = [dense | {"features": width}, {"op": "relu"}]
        return [{"op": "flatten"}, *hidden, *hidden, *hidden, dense | {"features": outputs}]
    hidden = [{"op": "conv", "features": width, "filter": [3, 3], "padding": "SAME", **scales}, {"op": "relu"}]
    return [*hidden, *hidden, *hidden, {"op": "flatten"}, dense | {"features": outputs}]


def best(run: Callable[[], Any], tries: int = 3) -> float:
    """Return the seconds of the fastest call after one that compiles."""
    jax.block_until_ready(run())
    seconds = []
    for _ in range(tries):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def alone(spec: list[dict[str, Any]], images: int, outputs: int) -> None:
    """Compare a tile with its matrix products, and with the two products of a layer as deep as one output's."""
    x = np.random.default_rng(0).standard_normal((images, 32, 32, 3)).astype(np.float32)
    weights = finite.init(spec, x.shape[1:])
    prepared = finite.prepare(spec, weights, x)
    factors = [np.asarray(array) for part in prepared.parts for array in part]
    rows = {
        "prepare": best(lambda: finite.prepare(spec, weights, x).parts, 1),
        "tile": best(lambda: finite.tile(prepared, prepared).ntk),
        "its products in NumPy": best(lambda: [array @ array.T for array in factors]),
    }
    if outputs > 1 and all(layer["op"] != "conv" for layer in spec):
        one = finite.prepare(spec, weights, x, outputs="pseudo")
        single = [np.asarray(array) for part in one.parts for array in part]
        rows["products of one output"] = best(lambda: [array @ array.T for array in single])
    for name, seconds in rows.items():
        print(f"{name:<24}{seconds:8.3f} s")
    for name in list(rows)[2:]:
        print(f"tile over {name}: {rows['tile'] / rows[name]:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=("dense", "conv"), default="dense")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--width", type=int)
    parser.add_argument("--outputs", type=int, default=1)
    parser.add_argument("--torch")
    parser.add_argument("--peer")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    spec = layers(given.network, given.width or (1024 if given.network == "dense" else 32), given.outputs)
    if not (given.torch or given.peer):
        alone(spec, given.images, given.outputs)
        return
    path = {"PYTHONPATH": ":".join(sys.path)}
    arguments = [json.dumps(spec), str(given.images)]
    sides = {"ntkpipe": Server(sys.executable, _OURS, arguments, path)}
    if given.torch:
        sides["torch.func"] = Server(given.torch, _TORCH, arguments)
    if given.peer:
        for way in _WAYS:
            try:
                sides[f"peer, {way.lower()}"] = Server(given.peer, _PEER, [*arguments, way])
            except SystemExit as error:
                print(f"peer, {way.lower()}: left out ({error})")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(given.rounds):
        for name, side in sides.items():
            seconds[name].append(side.seconds())
    for name, taken in seconds.items():
        low, middle, high = quartiles(taken)
        ratio = middle / quartiles(seconds["ntkpipe"])[1]
        print(f"{name:<32}{middle:9.3f} s  ({low:.3f} to {high:.3f})  {ratio:7.1f} times ntkpipe")
    for side in sides.values():
        side.close()


if __name__ == "__main__":
    main()
