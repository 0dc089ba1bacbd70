"""Cost of Ray and Zarr in the Gram stage, compared with the same worker that writes raw bytes.

Both sides compute the lower triangle of the same synthetic images with `gram.worker.compute_tile`, in the same number
of processes of one thread each, and both write a tile while the next is computed. The pipeline's side includes all work
of the stage: scheduling, reading and checking prepared images, Zarr chunks with checksums, put-if-absent, receipts and
progress. The raw side maps a `.npy` file and writes plain files; its tiles are assigned before.

Start-up (Ray, processes, compilation) is reported separately. Rounds are interleaved. The script prints the ratio of
each round and their median. For the full measurement: `python benchmarks/gram_overhead.py` (n = 20,480, edge 2048: about
2 GB are written per side and round, and removed after it); for a quick look: `--n 6144 --edge 1024 --rounds 2`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ntkpipe.cluster.session import local_session, worker_environment
from ntkpipe.config import ClusterConfig, DataConfig
from ntkpipe.kernels.zoo import fcn
from ntkpipe.tiles.grid import TileGrid

SPEC = fcn(3, w_std=2**0.5, b_std=0.1)
SHAPE = (32, 32, 3)


def serve(images: str, edge: int, worker: int, workers: int) -> None:
    """Run one process of the raw side, which writes its share of the tiles to each folder named on standard input."""
    from ntkpipe.gram.worker import compute_tile

    x = np.load(images, mmap_mode="r", allow_pickle=False)
    grid = TileGrid(len(x), len(x), edge, symmetric=True)

    def compute(i: int, j: int) -> dict[str, np.ndarray]:
        t = grid.tile(i, j)
        columns = None if i == j else x[t.col_start : t.col_stop]
        rows = x[t.row_start : t.row_stop]
        return compute_tile(
            SPEC, rows, columns, diagonal=i == j, dtype="float32", out_dtype="float32", pad_to=min(edge, len(x))
        )

    def write(folder: Path, i: int, j: int, tile: dict[str, np.ndarray]) -> None:
        for kernel, array in tile.items():
            with (folder / f"{kernel}.{i}.{j}").open("wb", buffering=0) as file:
                file.write(array.data.cast("B"))

    for i in (1, 0):
        compute(i, 0)  # compile
    print("ready", flush=True)
    for line in sys.stdin:
        folder, pending = Path(line.strip()), None
        with ThreadPoolExecutor(1) as writer:
            for k, t in enumerate(grid):
                if k % workers != worker:
                    continue
                tile = compute(t.i, t.j)
                if pending is not None:
                    pending.result()
                pending = writer.submit(write, folder, t.i, t.j, tile)
                del tile
            if pending is not None:
                pending.result()
        print("done", flush=True)


class RawSide:
    """The plain processes of the raw side, started once."""

    def __init__(self, images: Path, edge: int, workers: int) -> None:
        start = time.perf_counter()
        environment = {**os.environ, **worker_environment(1)}
        self._processes = [
            subprocess.Popen(
                [sys.executable, __file__, "--serve", json.dumps([str(images), edge, k, workers])],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for k in range(workers)
        ]
        self._await("ready")
        self.startup = time.perf_counter() - start

    def run(self, folder: Path) -> float:
        """Compute all tiles into a new folder, and return the seconds."""
        folder.mkdir()
        start = time.perf_counter()
        for process in self._processes:
            assert process.stdin
            process.stdin.write(f"{folder}\n")
            process.stdin.flush()
        self._await("done")
        return time.perf_counter() - start

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            assert process.stdin
            process.stdin.close()
            process.wait()

    def _await(self, word: str) -> None:
        for process in self._processes:
            assert process.stdout
            if process.stdout.readline().strip() != word:
                raise RuntimeError("a process of the raw side failed")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--n", type=int, default=20_480, help="training images")
    parser.add_argument("--edge", type=int, default=2048, help="rows per tile")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", help="where both sides write; default is the system's temporary folder")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        images, edge, worker, workers = json.loads(args.serve)
        serve(images, edge, worker, workers)
        return
    folder = Path(tempfile.mkdtemp(prefix="ntkpipe-overhead-", dir=args.folder))
    try:
        compare(args, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def compare(args: argparse.Namespace, folder: Path) -> None:
    start = time.perf_counter()
    with local_session(ClusterConfig(workers=args.workers)) as executor:
        ray_startup = time.perf_counter() - start
        from gram_round import gram_round

        from ntkpipe.data.dataset import load_dataset
        from ntkpipe.data.prepared import write_prepared
        from ntkpipe.storage.store import open_store

        dataset = load_dataset(DataConfig(kind="synthetic", n_train=args.n, n_test=10, shape=SHAPE))
        images = write_prepared(dataset, open_store(str(folder / "data")))
        np.save(folder / "images.npy", dataset.x_train)
        fingerprint = dataset.fingerprint
        del dataset
        raw = RawSide(folder / "images.npy", args.edge, args.workers)
        start = time.perf_counter()
        small = min(args.n, 2 * args.edge)
        warm = folder / "warm"
        gram_round(executor, images, SPEC, SHAPE, small, args.edge, fingerprint, warm)
        shutil.rmtree(warm)
        print(
            f"start-up: Ray {ray_startup:.1f} s, its workers' first tiles {time.perf_counter() - start:.1f} s; "
            f"plain processes and their first tiles {raw.startup:.1f} s"
        )
        ratios = []
        for k in range(args.rounds):
            seconds = {}
            # The order alternates: whoever goes first leaves dirty pages to the other, in spite of the sync.
            for side in ("pipeline", "raw") if k % 2 else ("raw", "pipeline"):
                os.sync()
                target = folder / f"{side}-{k}"
                if side == "raw":
                    seconds[side] = raw.run(target)
                else:
                    seconds[side] = gram_round(
                        executor, images, SPEC, SHAPE, args.n, args.edge, fingerprint, target
                    ).seconds
                shutil.rmtree(target)
            ratios.append(seconds["pipeline"] / seconds["raw"])
            pairs = sum(t.shape[0] * t.shape[1] for t in TileGrid(args.n, args.n, args.edge, symmetric=True))
            print(
                f"round {k}: pipeline {seconds['pipeline']:.2f} s ({pairs / seconds['pipeline']:.3g} pairs/s), "
                f"raw {seconds['raw']:.2f} s, ratio {ratios[-1]:.3f}",
                flush=True,
            )
        raw.close()
        print(f"median ratio pipeline / raw: {statistics.median(ratios):.3f} (target: at most 1.10)")


if __name__ == "__main__":
    main()
