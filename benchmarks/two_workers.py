"""The Gram stage with one and with two workers: wall time, processor seconds per tile, and waiting time of workers.

    python benchmarks/two_workers.py --data cifar10_jpeg.zip [--rounds 3]

The script runs the stage on real images in float32, as the pipeline runs it on Ray, with one thread per worker. Every
round starts again with one worker and then with two, and computes the first tiles (compilation) before the clock starts.
A speed-up of two needs a machine with two free cores that do not slow each other down. On other machines, processor
seconds per tile show the overhead of the pipeline (in all processes: workers, driver and Ray's). The wall time that
workers spend without computing shows how long they wait.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from ntkpipe.cluster.session import local_session
from ntkpipe.config import ClusterConfig, DataConfig
from ntkpipe.kernels.zoo import cnn_vec, fcn

# Name, network, images, rows of a tile: products of matrices and large tiles; many operations a pair and small ones.
CASES: list[tuple[str, list[dict[str, Any]], int, int]] = [
    ("fully connected, depth 3", fcn(3, w_std=2**0.5, b_std=0.1), 50_000, 2048),
    ("convolutional, depth 4", cnn_vec(4, w_std=2**0.5, b_std=0.1), 1600, 160),
]


def measure(
    data: DataConfig, spec: list[dict[str, Any]], n: int, edge: int, workers: int, folder: Path
) -> dict[str, float]:
    """Return the seconds, the processor seconds per tile and the idle share of one round."""
    with local_session(ClusterConfig(workers=workers)) as executor:
        from gram_round import gram_round

        from ntkpipe.data.dataset import load_dataset
        from ntkpipe.data.prepared import write_prepared
        from ntkpipe.run.calibrate import ProcessorSeconds
        from ntkpipe.storage.store import open_store

        dataset = load_dataset(data)
        images = write_prepared(dataset, open_store(str(folder / "data")))
        shape, key = dataset.x_train.shape[1:], dataset.fingerprint
        gram_round(executor, images, spec, shape, min(n, 3 * edge), edge, key, folder / "warm")
        with ProcessorSeconds(0.1) as clock:
            used = clock.seconds
            report = gram_round(executor, images, spec, shape, n, edge, key, folder / "gram")
            used = clock.seconds - used
    shutil.rmtree(folder)
    return {
        "seconds": report.seconds,
        "a tile": used / report.computed,
        "computing": report.worker_seconds / report.computed,
        "idle": 1 - report.worker_seconds / (report.seconds * workers),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder or zip of images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()
    for name, spec, n, edge in CASES:
        if options.only not in name:
            continue
        data = DataConfig(kind="image_folder", path=options.data, train_size=n)
        speed, rise = [], []
        for k in range(options.rounds):
            found = {}
            for workers in (1, 2) if k % 2 == 0 else (2, 1):
                load = os.getloadavg()[0]
                folder = Path(tempfile.mkdtemp(prefix="ntkpipe-workers-"))
                one = found[workers] = measure(data, spec, n, edge, workers, folder)
                print(
                    f"{name}, {workers} workers: {one['seconds']:.1f} s, a tile {one['a tile']:.3f} processor seconds, "
                    f"{one['computing']:.3f} s of computing; workers idle {100 * one['idle']:.1f}%; load before {load:.1f}",
                    flush=True,
                )
            speed.append(found[1]["seconds"] / found[2]["seconds"])
            rise.append(found[2]["a tile"] / found[1]["a tile"] - 1)
        print(
            f"{name}: {statistics.median(speed):.2f} times faster ({min(speed):.2f} to {max(speed):.2f}), "
            f"processor seconds of a tile {100 * statistics.median(rise):+.1f}%\n",
            flush=True,
        )


if __name__ == "__main__":
    main()
