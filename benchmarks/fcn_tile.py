"""One tile of a fully connected network of depth 3, NNGP and NTK, against neural-tangents on the same machine.

Usage: `python benchmarks/fcn_tile.py [PEER_ENVIRONMENT]`. The script creates the peer's environment there (default
`.venv-peer`) with this interpreter (3.11 or 3.12) and the configured package index, if it does not exist.

Both sides are servers in separate processes that are called in turn, so that other load on the machine affects both. The
script prints the median over rounds of the ratio of their times. neural-tangents is jitted and returns both kernels from
one call, as ntkpipe does. For a symmetric matrix, it computes every tile and ntkpipe half of them.

A tile of n x n pairs of images of d values in float32 needs 2 n^2 d operations for the product (n = 2048, d = 3072:
25.8 GFlop, 0.18 s at the 145 GF/s of two slow cores, 0.11 s at 240), 3 nonlinear maps of about 35 operations
(0.4 GFlop), 8 n^2 bytes of results (34 MB) and 8 n d bytes of images (50 MB). So the product takes almost all the time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from peer import DEFAULT_ENVIRONMENT, Server, peer_python, quartiles

DEPTH, W_STD, B_STD = 3, 2**0.5, 0.1

# A side loads the images, computes once (compiling), stores the values, and evaluates when asked.
SIDE = """
import sys
import numpy as np
folder, side, depth, w_std, b_std = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5])
x1, x2 = np.load(folder + "/x1.npy", allow_pickle=False), np.load(folder + "/x2.npy", allow_pickle=False)
if side == "peer":
    import jax
    from neural_tangents import stax
    layers = [stax.Flatten()]
    for _ in range(depth):
        layers += [stax.Dense(512, W_std=w_std, b_std=b_std), stax.Relu()]
    kernel = jax.jit(stax.serial(*layers, stax.Dense(10, W_std=w_std, b_std=b_std))[2], static_argnums=2)
    x1, x2 = jax.device_put(x1), jax.device_put(x2)
    def evaluate(request):
        made = jax.block_until_ready(kernel(x1, x2, ("nngp", "ntk")))
        return made.nngp, made.ntk
else:
    from ntkpipe.gram.worker import compute_tile
    from ntkpipe.kernels.zoo import fcn
    spec = fcn(depth, w_std=w_std, b_std=b_std)
    def evaluate(request):
        made = compute_tile(spec, x1, x2, diagonal=False, dtype="float32", out_dtype="float32", pad_to=len(x1))
        return made["nngp"], made["ntk"]
np.save(folder + "/" + side + ".npy", np.stack([np.asarray(k) for k in evaluate("")]))
evaluate("")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="One fully connected tile against neural-tangents")
    parser.add_argument("peer", nargs="?", default=DEFAULT_ENVIRONMENT, type=Path, help="environment of the peer")
    parser.add_argument("--edge", type=int, default=2048)
    parser.add_argument("--features", type=int, default=3072)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    python = peer_python(arguments.peer)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        common = rng.standard_normal((1, arguments.features), dtype=np.float32)
        for name in ("x1", "x2"):
            images = common + rng.standard_normal((arguments.edge, arguments.features), dtype=np.float32)
            np.save(f"{folder}/{name}.npy", images)
        servers: list[Server] = []
        try:
            for interpreter, side in ((sys.executable, "ntkpipe"), (python, "peer")):
                servers.append(Server(interpreter, SIDE, [folder, side, str(DEPTH), str(W_STD), str(B_STD)]))
            rounds = [(servers[0].seconds(), servers[1].seconds()) for _ in range(arguments.rounds)]
        finally:
            for server in servers:
                server.close()
        ours, theirs = (np.load(f"{folder}/{side}.npy", allow_pickle=False) for side in ("ntkpipe", "peer"))
    difference = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(ours, theirs, strict=True))
    ratios = [peer / ours for ours, peer in rounds]
    pairs = arguments.edge**2
    print(
        f"tile {arguments.edge} x {arguments.edge} x {arguments.features}, float32, {arguments.rounds} rounds in turn"
    )
    for name, times in zip(("ntkpipe", "neural-tangents"), zip(*rounds, strict=True), strict=True):
        median = statistics.median(times)
        print(f"{name:16s} median {median:.3f} s, {pairs / median / 1e6:.1f} million pairs/s")
    print(f"largest difference relative to the largest value: {difference:.1e}")
    low, middle, high = quartiles(ratios)
    print(f"ratio of pairs/s, median (quartiles): {middle:.2f} ({low:.2f} to {high:.2f})")
    print(f"counting the triangle: {2 * middle:.2f}")
    if not difference < 1e-5:
        raise SystemExit("the two sides disagree")


if __name__ == "__main__":
    main()
