"""Tiles of convolutional networks, in float32 and float64, against neural-tangents on the same machine.

Usage: `python benchmarks/convolutional_tiles.py [PEER_ENVIRONMENT]`. The script creates the peer's environment there
(default `.venv-peer`) if it does not exist. `--networks myrtle10 --dtypes float32` runs a part; the whole takes half an
hour.

Both sides return both kernels. They are servers in separate processes that are called in turn, on all cores (two here).
The script prints medians over rounds, and medians of the ratios of the rounds. neural-tangents is jitted and uses its
best batch of pairs, which is found before within `--memory-gib`. ntkpipe computes a tile and prepares the images each
time. It also runs with one thread (NPROC=1), as a worker of the pipeline does. For a symmetric matrix, the peer computes
every tile and ntkpipe half of them, which is not counted here. Values are compared with the peer's float64 values for
the same images. The peer's own float32 values are compared as well; they deviate by 2e-4 in the mean over CNN-GAP's
million covariances.

The lower limit of the time per pair is the number of operations of both kernels over the rate of a core.
`ntkpipe.kernels.cost` counts the operations (a root or a division is one). The rate is measured on a polynomial of
covariances in cache: 130 GF/s in float32, 65 in float64 (OpenBLAS multiplies no faster: 125 to 145 and 62). The bytes
assume that every layer that moves covariances reads and writes both kernels in memory once, with nonlinearities fused.
Covariances that stay in cache, one class of pixel pairs at a time, move no bytes, so ntkpipe can be faster than the
limit by bytes.

    network              operations   2 cores,   2 cores,   bytes,    at 20 GB/s   H200, 67 TF/s   H200, 4.3 TB/s
                                      float32    float64    float32   (2 cores)    (data sheet)    (copy, measured)
    Myrtle-10   32x32    169 MF       0.65 ms    1.3 ms     63 MB     3.2 ms       2.5 us          15 us
    CNN-GAP-10  32x32    535 MF       2.1 ms     4.1 ms     176 MB    8.8 ms       8.0 us          41 us
    CNN-Vec-10  32x32    0.52 MF      2.0 us     4.0 us     0.17 MB   8.6 us       8 ns            40 ns

`benchmarks/gpu.py` measures what a GPU reaches of these limits.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from covariance_bytes import bytes_moved
from peer import DEFAULT_ENVIRONMENT, Server, peer_python, quartiles

from ntkpipe.kernels import zoo
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.cost import kernel_cost

_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)

# Of the peer's float64 values. In float32 a few roundings, of 6e-8 each, in every one of ten layers.
_ALLOWED = {"float32": 5e-6, "float64": 1e-10}
_COMPARED = 2  # rows and columns


@dataclass(frozen=True)
class Network:
    """One row of the table.

    Args:
        spec: layers of the network.
        image_shape: shape of an image.
        edge: edge of the tile.
        targets: smallest accepted ratio in float32 and in float64.
    """

    spec: list[dict[str, Any]]
    image_shape: tuple[int, int, int]
    edge: int
    targets: tuple[float, float]

    @property
    def flops(self) -> float:
        """Return the operations of both kernels of a pair."""
        architecture = Architecture.from_spec(self.spec)
        return kernel_cost(architecture.to_spec(), architecture.steps(self.image_shape)).flops_per_pair

    @property
    def entries(self) -> int:
        """Return the number of covariances of a pair that the network needs in its first layer."""
        return Architecture.from_spec(self.spec).steps(self.image_shape)[0].incoming.entries


_CIFAR, _SMALL = (32, 32, 3), (8, 8, 3)
NETWORKS = {
    "myrtle10": Network(zoo.myrtle(10, _CIFAR), _CIFAR, 16, (30, 5)),
    "cnn_gap": Network(zoo.cnn_gap(10), _CIFAR, 16, (30, 5)),
    "cnn_vec": Network(zoo.cnn_vec(10), _CIFAR, 128, (4, 5)),
    "resnet_8x8": Network(zoo.resnet(3), _SMALL, 64, (4, 4)),
    "attention_8x8": Network(zoo.attention(1), _SMALL, 64, (1, 1)),
}

OURS = """
import json, sys
import numpy as np
from ntkpipe.kernels.accelerator import precision_context
from ntkpipe.kernels.architecture import Architecture
folder, network = sys.argv[1:]
architecture = Architecture.from_spec(json.loads(open(folder + "/" + network + ".json").read()))
x1, x2 = np.load(folder + "/x1.npy", allow_pickle=False), np.load(folder + "/x2.npy", allow_pickle=False)
def evaluate(request):
    with precision_context(x1.dtype):
        made = architecture.tiles(architecture.prepare(x1), architecture.prepare(x2))[0]
    if request:
        np.save(folder + "/ours.npy", np.stack(made))
evaluate("")
"""

THEIRS = """
import json, sys, warnings
import jax, numpy as np
warnings.filterwarnings("ignore", module="neural_tangents")
from neural_tangents import stax
folder, network, dtype = sys.argv[1:]

def made(layer):
    layer = dict(layer)
    op = layer.pop("op")
    std = {"W_std": layer.pop("w_std", None), "b_std": layer.pop("b_std", None)}
    if op == "conv":
        return stax.Conv(layer["features"], tuple(layer["filter"]), tuple(layer["strides"]), layer["padding"], **std)
    if op == "dense":
        return stax.Dense(layer["features"], **std)
    if op == "avg_pool":
        return stax.AvgPool(tuple(layer["window"]), tuple(layer["strides"]), layer["padding"])
    if op == "global_self_attention":
        sizes = layer["n_chan_out"], layer["n_chan_key"], layer["n_chan_val"], layer["n_heads"]
        return stax.GlobalSelfAttention(
            *sizes, W_out_std=layer["w_out_std"], b_std=std["b_std"], attention_mechanism=layer["mechanism"]
        )
    if op == "residual_sum":
        branches = [stax.serial(*map(made, b)) if b else stax.Identity() for b in layer["branches"]]
        return stax.serial(stax.FanOut(len(branches)), stax.parallel(*branches), stax.FanInSum())
    return {"relu": stax.Relu, "global_avg_pool": stax.GlobalAvgPool, "flatten": stax.Flatten}[op]()

layers = json.loads(open(folder + "/" + network + ".json").read())
kernel = jax.jit(stax.serial(*map(made, layers))[2], static_argnums=2)
x1, x2 = (np.load(f"{folder}/{x}.npy", allow_pickle=False).astype(dtype) for x in ("x1", "x2"))
def evaluate(request):
    batch, *save = request.split()
    values = jax.block_until_ready(kernel(x1[: int(batch)], x2[: int(batch)], ("nngp", "ntk")))
    if save:
        np.save(f"{folder}/theirs-{dtype}.npy", np.stack([np.asarray(values.nngp), np.asarray(values.ntk)]))
"""


def best_batch(server: Server, network: Network, itemsize: int, memory: float, patience: float) -> int:
    """Return the edge of the peer's batch with most pairs per second.

    Only batches whose arrays fit into memory and that take at most `patience` seconds are tried.
    """
    best, seconds = 1, math.inf
    for batch in _BATCHES:
        too_long = math.isfinite(seconds) and seconds * batch**2 > patience
        # About twelve arrays of all covariances at a time.
        if 12 * batch**2 * network.entries * itemsize > memory or batch > network.edge or too_long:
            break
        server.seconds(str(batch))  # compiles
        per_pair = min(server.seconds(str(batch)) for _ in range(2)) / batch**2
        if per_pair > 1.5 * seconds:
            break
        if per_pair < seconds:
            best, seconds = batch, per_pair
    return best


def compare(name: str, dtype: str, python: str, options: argparse.Namespace) -> bool:
    """Print one row, and return whether the values agree."""
    network, itemsize = NETWORKS[name], np.dtype(dtype).itemsize
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        common = rng.standard_normal((1, *network.image_shape))
        for block in ("x1", "x2"):
            images = common + rng.standard_normal((network.edge, *network.image_shape))
            np.save(f"{folder}/{block}.npy", images.astype(dtype))
        Path(f"{folder}/{name}.json").write_text(json.dumps(network.spec))
        servers: list[Server] = []
        try:
            for precision in dict.fromkeys((dtype, "float64")):
                x64 = {"JAX_ENABLE_X64": "1" if precision == "float64" else "0"}
                servers.append(Server(python, THEIRS, [folder, name, precision], x64))
                servers[-1].seconds(f"{_COMPARED} save")
            while len(servers) > 1:
                servers.pop().close()
            batch = best_batch(servers[0], network, itemsize, options.memory_gib * 2**30, options.patience)
            servers += [Server(sys.executable, OURS, [folder, name], more) for more in ({}, {"NPROC": "1"})]
            servers[1].seconds("save")
            pairs, theirs = network.edge**2, batch**2
            rounds = []
            for _ in range(options.rounds):
                peer, both, one = servers[0].seconds(str(batch)), servers[1].seconds(), servers[2].seconds()
                rounds.append((theirs / peer, pairs / both, pairs / one))
        finally:
            for server in servers:
                server.close()
        exact, peers = (np.load(f"{folder}/theirs-{d}.npy", allow_pickle=False) for d in ("float64", dtype))
        ours = np.load(f"{folder}/ours.npy", allow_pickle=False)[:, :_COMPARED, :_COMPARED]
    scale = np.abs(exact).max((1, 2), keepdims=True)
    difference, of_peer = (float((np.abs(values - exact) / scale).max()) for values in (ours, peers))
    peer, both, one = (quartiles(rates)[1] for rates in zip(*rounds, strict=True))
    low, middle, high = quartiles([both / peer for peer, both, _ in rounds])
    target = network.targets[dtype == "float64"]
    print(
        f"| {name} | {dtype} | {both:.4g} | {one:.4g} | {peer:.4g} ({batch} x {batch}) | {middle:.1f} ({low:.1f} to {high:.1f}) "
        f"| {target:g}: {'reached' if middle >= target else 'MISSED'} | {difference:.1e} | {of_peer:.1e} |",
        flush=True,
    )
    return difference <= _ALLOWED[dtype]


def _rate(run: Callable[[], Any], work: float) -> float:
    """Return the work per second in the best of ten calls."""
    run()
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return work / min(seconds)


def measure_rates() -> None:
    """Print rates as JSON.

    They are the operations per second of one core on covariances in cache for each dtype, and the bytes per second that
    all cores copy.
    """
    import jax

    def polynomial(x: Any, repeats: int) -> Any:
        def once(_: int, x: Any) -> Any:
            y = x
            for _ in range(32):
                y = y * x + 0.01
            return y

        return jax.lax.fori_loop(0, repeats, once, x)

    rates = {}
    for dtype in ("float32", "float64"):
        with jax.enable_x64(dtype == "float64"):
            x = np.linspace(0, 1, (128 << 10) // np.dtype(dtype).itemsize).astype(dtype)
            run = jax.jit(polynomial, static_argnums=1, compiler_options={"xla_cpu_prefer_vector_width": 512})
            rates[dtype] = _rate(lambda run=run, x=x: jax.block_until_ready(run(x, 200)), 200 * 64 * len(x))
    cores = len(os.sched_getaffinity(0))
    source = np.ones((cores, 64 << 20), np.uint8)
    target = np.empty_like(source)
    with ThreadPoolExecutor(cores) as pool:
        rates["copy"] = _rate(lambda: list(pool.map(np.copyto, target, source)), 2 * source.nbytes)
    print(json.dumps(rates))


def print_floors() -> None:
    """Print the limits of the module's docstring with the rates of this machine."""
    command = [sys.executable, __file__, "--rates"]
    made = subprocess.run(command, env={**os.environ, "NPROC": "1"}, check=True, capture_output=True, text=True)
    rates, cores = json.loads(made.stdout), len(os.sched_getaffinity(0))
    print(
        f"one core: {rates['float32'] / 1e9:.0f} GF/s of a polynomial in cache in float32, {rates['float64'] / 1e9:.0f} in "
        f"float64; {cores} cores copy {rates['copy'] / 1e9:.0f} GB/s, read and written\n"
    )
    print(
        f"| network | MF per pair | {cores} cores, float32 | float64 | MB, float32 | in memory | H200, 67 TF/s | 4.3 TB/s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, network in NETWORKS.items():
        flops, moved = network.flops, bytes_moved(network.spec, network.image_shape, 4)
        times = [flops / cores / rates["float32"], flops / cores / rates["float64"], moved / rates["copy"]]
        device = [flops / 67e12, moved / 4.3e12]
        print(
            f"| {name} | {flops / 1e6:.3g} | {times[0] * 1e3:.3g} ms | {times[1] * 1e3:.3g} ms | {moved / 1e6:.3g} "
            f"| {times[2] * 1e3:.3g} ms | {device[0] * 1e6:.2g} us | {device[1] * 1e6:.2g} us |"
        )
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description="Tiles of convolutional networks against neural-tangents")
    parser.add_argument("peer", nargs="?", default=DEFAULT_ENVIRONMENT, type=Path, help="environment of the peer")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "float64"), default=["float32", "float64"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--memory-gib", type=float, default=8.0, help="of the peer's arrays, for the search of its batch"
    )
    parser.add_argument("--patience", type=float, default=60.0, help="seconds that one evaluation of the peer may take")
    parser.add_argument("--rates", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rates:
        measure_rates()
        return
    python = peer_python(options.peer)
    print_floors()
    print(
        "pairs per second, both kernels; ratio: median (quartiles) of rounds; differences from the peer in float64, relative"
    )
    print("to the largest value\n")
    print(
        "| network | dtype | ntkpipe | one thread | neural-tangents (its batch) | ratio | target | difference | of the peer |"
    )
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    agree = [compare(name, dtype, python, options) for name in options.networks for dtype in options.dtypes]
    if not all(agree):
        raise SystemExit("the two sides disagree")


if __name__ == "__main__":
    main()
