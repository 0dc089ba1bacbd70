"""The tiled Cholesky factorisation against LAPACK's, in interleaved rounds with the same number of threads.

    python benchmarks/cholesky_vs_lapack.py --n 12000 --rounds 2

The rows of the table are:

lapack     SciPy's `potrf` in place on an F-ordered array, with all threads
tiled      tiles in memory, in one process whose BLAS has all threads
budget     tiles in files, with memory for a third of the matrix, in the same process
mixed      a float32 factor, and refinement of ten columns to the residual of float64
float64    the same with a float64 factor, for comparison with `mixed`

The matrix is a Gram matrix of random vectors with a condition number of about 1e4. On a shared machine, use
`--clock cpu --threads 1`, which counts processor seconds, including those of threads that read and write.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.linalg
from threadpoolctl import threadpool_limits

from ntkpipe.linalg.direct import solve_direct
from ntkpipe.linalg.factor.factorise import factorise
from ntkpipe.linalg.factor.workspace import release
from ntkpipe.linalg.operator import tile_operator
from ntkpipe.storage.local import LocalStore
from ntkpipe.storage.memory import MemoryStore
from ntkpipe.tasks.serial import SerialExecutor
from ntkpipe.tiles.grid import TileGrid
from ntkpipe.tiles.matrix import InMemoryTiles


def matrix_of(n: int) -> np.ndarray:
    """Return a matrix like a kernel, with one large eigenvalue, a decaying bulk and a condition number of about 1e4."""
    x = np.random.default_rng(0).standard_normal((n, 256)) * np.logspace(0, -1, 256)
    a = x @ x.T
    a += 0.1 * a.diagonal().mean()
    a[np.arange(n), np.arange(n)] += 1e-2 * a.diagonal().mean()
    return a


def main() -> int:
    """Print a line for each row: the median seconds, flops per second and its ratio to LAPACK's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--stored-edge", type=int, default=1000)
    parser.add_argument("--edge", type=int, help="of the factor; by default chosen")
    parser.add_argument("--folder", default=None, help="for files")
    parser.add_argument("--rows", default="lapack,tiled,budget,float64,mixed")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: of the process, on a busy machine"
    )
    args = parser.parse_args()
    n, rows = args.n, args.rows.split(",")
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    flops = n**3 / 3
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    a = matrix_of(n)
    b = np.random.default_rng(1).standard_normal((n, 10))
    tiles = InMemoryTiles(a, TileGrid(n, n, args.stored_edge, symmetric=True))
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    notes: dict[str, str] = {}

    def factor(name: str, store: MemoryStore | LocalStore, memory: int) -> float:
        began = clock()
        made = factorise(
            tiles,
            name="a",
            store=store,
            prefix="cholesky/k",
            executor=SerialExecutor(),
            memory_bytes=memory,
            edge=args.edge,
        )
        notes[name] = (
            f"edge {made.plan.edge}, {made.read_bytes / 2**30:.2f} GiB read, memory {made.plan.peak_bytes / 2**30:.2f} GiB"
        )
        release()
        return clock() - began

    def solve(name: str, store: MemoryStore, operator) -> float:
        began = clock()
        found = solve_direct(
            tiles,
            operator,
            b,
            precision=name,
            name="a",
            ridge=0.0,
            store=store,
            prefix="cholesky/k",
            executor=SerialExecutor(),
            memory_bytes=1 << 36,
            edge=args.edge,
        )
        taken = clock() - began
        notes[name] = (
            f"residual {found.residual:.1e} after {found.iterations} solves with a {found.run.factor.dtype} factor"
        )
        release()
        return taken

    try:
        with (
            threadpool_limits(args.threads),
            tile_operator(tiles, SerialExecutor(), products="float64", memory_bytes=1 << 36) as operator,
        ):
            operator.matmul(b)
            for k in range(args.rounds):
                for name in rows:
                    if name == "lapack":
                        work = np.array(a, order="F")
                        began = clock()
                        _, info = scipy.linalg.lapack.dpotrf(work, lower=1, clean=0, overwrite_a=1)
                        taken = clock() - began
                        assert info == 0
                        del work
                    elif name == "tiled":
                        taken = factor(name, MemoryStore(f"tiled-{k}"), 1 << 36)
                    elif name == "budget":
                        taken = factor(name, LocalStore(folder / f"{k}"), 8 * n * n // 3)
                        shutil.rmtree(folder / f"{k}")
                    else:
                        taken = solve(name, MemoryStore(f"{name}-{k}"), operator)
                    for kind in ("tiled", "float64", "mixed"):
                        for key in list(MemoryStore(f"{kind}-{k}").list()):
                            MemoryStore(f"{kind}-{k}").delete(key)
                    seconds[name].append(taken)
                    print(
                        f"round {k} {name:>8} {taken:7.2f} s {flops / taken / 1e9:6.1f} GF/s  {notes.get(name, '')}",
                        flush=True,
                    )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    for name, value in median.items():
        ratio = f", {median['lapack'] / value:.2f} of LAPACK's speed" if "lapack" in median else ""
        print(f"{name:>8}: {value:.2f} s, {flops / value / 1e9:.1f} GF/s{ratio}")
    if {"mixed", "float64"} <= set(median):
        print(f"   mixed takes {median['mixed'] / median['float64']:.2f} of the time of float64")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
