"""`python -m ntkpipe.gram.pair_probe`: times the kernel evaluations of random images, for planning.

It reads JSON and writes one line of JSON. With one thread on the CPU it measures the CPU time of the process, which
other processes affect least; otherwise it measures wall time. Run it in a new process, because it also reports the
memory of a process that does nothing else.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ntkpipe.gram.worker import architecture
from ntkpipe.kernels.accelerator import precision_context
from ntkpipe.kernels.evaluation import host, spatial
from ntkpipe.kernels.evaluation.blocks import choose_batch

# A measurement is repeated for at least this long, so that the clock and the start of threads do not matter.
_ENOUGH = 0.15
# All measurements share one compiled program, for this many bytes of row images.
_ROW_BYTES = 8 << 20
# The best of this many measurements counts, because other processes only slow them down.
_RUNS = 3


def measured(asked: dict[str, Any]) -> dict[str, Any]:
    """The fastest number of pairs per step and its time per pair, as the JSON-ready answer."""
    arch, dtype, shape = architecture(asked["spec"]), asked["dtype"], tuple(asked["image_shape"])
    tried: dict[int, float] = {}
    with precision_context(dtype):
        if asked.get("edge") is not None:
            tried[asked["edge"]] = _seconds_of_tile(arch, shape, dtype, asked["edge"])
        for pairs in () if tried else candidates(arch.steps(shape), np.dtype(dtype).itemsize, asked["pairs_per_step"]):
            tried[pairs] = _seconds_per_pair(arch, shape, dtype, pairs)
    with precision_context("float64"):  # as for the diagonals of every Gram matrix
        arch.diagonals(np.ones((1, *shape)))
    best = min(tried, key=lambda pairs: tried[pairs])
    device = jax.devices()[0]
    return {
        "seconds_per_pair": tried[best],
        "pairs_per_step": best,
        "process_bytes": _resident(),
        "tried": {str(pairs): seconds for pairs, seconds in tried.items()},
        "device": device.device_kind,
    }


def candidates(steps: tuple[Any, ...], itemsize: int, asked: int | None) -> list[int]:
    """Numbers of pairs per step to time: one that fills a block, half and twice of it; or only the given number."""
    if asked is not None:
        return [asked]
    usual = choose_batch(steps, itemsize, on_cpu=host.is_default()).pairs
    return [usual] if usual == 1 else [usual, max(1, usual // 2), 2 * usual]


def _seconds_per_pair(arch: Any, shape: tuple[int, ...], dtype: str, pairs: int) -> float:
    """Seconds per pair for a network on images, with so many pairs per step."""
    rng, clock = np.random.default_rng(0), _clock()
    columns = arch.prepare(rng.standard_normal((pairs * spatial.threads(), *shape)).astype(dtype))
    of_image = sum(leaf.nbytes for leaf in jax.tree.leaves((columns.images, columns.seen))) // len(columns.images)
    most = int(np.clip(_ROW_BYTES // of_image, 8, 1024))
    rows = 1
    while True:
        images = arch.prepare(rng.standard_normal((rows, *shape)).astype(dtype))
        arch.tiles(images, columns, pairs=pairs, pad_to=most)  # compiles on the first call
        times = []
        for _ in range(_RUNS):
            start = clock()
            arch.tiles(images, columns, pairs=pairs, pad_to=most)
            times.append(clock() - start)
        seconds = min(times)
        if seconds >= _ENOUGH or rows >= most:
            return seconds / (rows * len(columns.images))
        rows = min(most, max(2 * rows, int(1.5 * rows * _ENOUGH / seconds)))


def _seconds_of_tile(arch: Any, shape: tuple[int, ...], dtype: str, edge: int) -> float:
    """Seconds per pair of a whole tile for a network that flattens its images, including the preparation of columns."""
    rng, clock = np.random.default_rng(0), _clock()
    images = rng.standard_normal((edge, *shape)).astype(dtype)
    rows, times = arch.prepare(images), []
    for _ in range(1 + _RUNS):  # the first call compiles
        start = clock()
        arch.tiles(rows, arch.prepare(images[::-1].copy()), pad_to=edge)
        times.append(clock() - start)
    return statistics.median(times[1:]) / edge**2


def _clock() -> Callable[[], float]:
    """The clock for measurements: CPU time for one CPU thread, otherwise wall time."""
    return time.process_time if host.is_default() and spatial.threads() == 1 else time.perf_counter


def _resident() -> int:
    """Peak resident memory of this process in bytes."""
    try:
        # Not `ru_maxrss`: on Linux it includes the peak of the parent process.
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


if __name__ == "__main__":
    print(json.dumps(measured(json.loads(sys.stdin.read()))))
