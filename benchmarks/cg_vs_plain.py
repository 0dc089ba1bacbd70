"""Passes over the matrix: textbook, block and preconditioned block conjugate gradients, and block Lanczos, on real images.

The matrices are the NTK and NNGP of a fully connected network (3 hidden ReLU layers, w_std = sqrt 2, b_std = 0.1,
float64) on standardised CIFAR-10 images, with a ridge of 1e-6 of the mean of the diagonal. All methods solve for centred
labels until the recomputed relative residual of every column is 1e-8. Passes of the preconditioner (products with up to
256 vectors, or requests for rows) count one each. The table also shows its arithmetic in units of a pass with nine
vectors.

    python benchmarks/cg_vs_plain.py --data cifar10_subset.npz [--n 5085] [--kernels ntk,nngp] [--rank 512]
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
from threadpoolctl import threadpool_limits

from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.zoo import fcn
from ntkpipe.linalg.cg import block_cg
from ntkpipe.linalg.lanczos import LanczosResult, block_lanczos
from ntkpipe.linalg.operator import DenseOperator
from ntkpipe.linalg.preconditioner import Identity, float32_factor, nystrom, pivoted_cholesky
from ntkpipe.storage.memory import MemoryStore
from ntkpipe.tasks.serial import SerialExecutor
from ntkpipe.tiles.grid import TileGrid
from ntkpipe.tiles.matrix import InMemoryTiles

TOLERANCE = 1e-8


def plain_passes(operator: DenseOperator, y: np.ndarray, ridge: float) -> int:
    """Return the passes of textbook conjugate gradients, with independent columns that share each product."""
    residual = y.copy()
    direction = residual.copy()
    square = (residual**2).sum(axis=0)
    wanted = TOLERANCE**2 * square
    passes = 0
    while (square > wanted).any():
        image = operator.matmul(direction) + ridge * direction
        passes += 1
        residual -= square / (direction * image).sum(axis=0) * image
        before, square = square, (residual**2).sum(axis=0)
        direction = residual + square / before * direction
    return passes


def lanczos_passes(operator: DenseOperator, y: np.ndarray, ridge: float) -> int:
    """Return the passes of block Lanczos with full reorthogonalisation to the same residual."""
    norms = np.linalg.norm(y, axis=0)

    def stop(result: LanczosResult) -> bool:
        first = np.zeros((len(result.projected), y.shape[1]))
        first[: len(result.start)] = result.start
        u = np.linalg.solve(result.projected + ridge * np.eye(len(first)), first)
        residual = result.coupling @ u[-result.coupling.shape[1] :]
        return bool((np.linalg.norm(residual, axis=0) <= TOLERANCE * norms).all())

    return block_lanczos(operator, y, max_steps=1000, stop=stop, check_every=lambda step: step + 2).steps


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="npz with x_train, y_train (uint8 images)")
    parser.add_argument("--n", type=int, default=5085, help="training images")
    parser.add_argument("--kernels", default="ntk,nngp")
    parser.add_argument("--ridge", type=float, default=1e-6, help="relative to the mean of the diagonal")
    parser.add_argument("--rank", type=int, help="of nystrom and cholesky; by default adaptive")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    with np.load(args.data, allow_pickle=False) as data:
        x, labels = data["x_train"][: args.n].astype(np.float64), data["y_train"][: args.n]
    x = (x - x.mean((0, 1, 2))) / x.std((0, 1, 2))
    classes = int(labels.max()) + 1
    y = np.eye(classes)[labels] - 1 / classes
    made = Architecture.from_spec(fcn(3, w_std=np.sqrt(2), b_std=0.1))(x)

    good = True
    for kernel in args.kernels.split(","):
        matrix = np.asarray(getattr(made, kernel))
        operator = DenseOperator(matrix)
        tiles = InMemoryTiles(matrix, TileGrid(len(matrix), len(matrix), 1024, symmetric=True))
        ridge = args.ridge * float(matrix.diagonal().mean())
        passes = {}
        with threadpool_limits(args.threads):
            for name in ("none", "nystrom", "cholesky", "float32_factor"):
                began = time.perf_counter()
                sketch, columns, preconditioner = 0, 0, Identity()
                if name == "float32_factor":
                    preconditioner = float32_factor(
                        tiles,
                        name=kernel,
                        ridge=ridge,
                        store=MemoryStore(kernel),
                        prefix="cholesky",
                        executor=SerialExecutor(),
                        memory_bytes=1 << 36,
                    )
                elif name != "none":
                    low_rank = (nystrom if name == "nystrom" else pivoted_cholesky)(
                        operator, ridge=ridge, rank=args.rank
                    )
                    preconditioner, sketch, columns = low_rank.at(ridge), low_rank.passes, low_rank.columns
                middle = time.perf_counter()
                found = block_cg(operator, y, ridge=ridge, preconditioner=preconditioner, tolerance=TOLERANCE)
                ended = time.perf_counter()
                good &= found.reason.ok
                passes[name] = found.iterations + found.checks + sketch
                arithmetic = columns / (classes - 1) if name == "nystrom" else 0.0
                print(
                    f"{kernel:>4} {name:>14}: rank {preconditioner.rank:5d}, {found.iterations:4d} passes, {found.checks} to "
                    f"recompute residuals, {sketch} of the preconditioner ({arithmetic:.0f} in arithmetic), residual "
                    f"{found.residual:.1e}, {middle - began:.1f} + {ended - middle:.1f} s, smallest eigenvalue about "
                    f"{found.smallest:.3g}",
                    flush=True,
                )
            print(f"{kernel:>4}        lanczos: {lanczos_passes(operator, y, ridge):4d} passes", flush=True)
            plain = plain_passes(operator, y, ridge)
            print(f"{kernel:>4}       textbook: {plain:4d} passes", flush=True)
        ratio = plain / passes["cholesky"]
        good &= ratio >= 3
        print(
            f"{kernel}: textbook conjugate gradients over block ones with pivots, all passes counted: {ratio:.2f} (goal: 3, "
            f"{'reached' if ratio >= 3 else 'MISSED'}); block over block with pivots: {passes['none'] / passes['cholesky']:.2f}"
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
