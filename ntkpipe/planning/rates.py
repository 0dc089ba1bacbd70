"""Measures the rates of dense algebra and of the path to the store in several processes at once, like workers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np

from ntkpipe.errors import ResourceError
from ntkpipe.storage.checksum import crc32c
from ntkpipe.storage.store import ObjectStore
from ntkpipe.tasks.environment import worker_environment

_OBJECT_BYTES = 16 << 20
_SECONDS = 120.0  # a process that takes longer hangs
# Memory-bound rates. More threads per worker do not increase them.
_BOUND_BY_MEMORY = ("orthogonalise", "copy")


def measure_rates(
    workers: int, threads: int, outputs: int, *, size: int, seconds: float
) -> tuple[dict[str, float], float]:
    """Rates of one worker while all work, by the names of `linalg.rate_probe`, and how busy the machine was.

    The rates are measured with one thread and multiplied by the threads of a worker, except for memory-bound rates.

    Args:
        workers: number of processes.
        threads: per worker.
        outputs: number of vectors of a product.
        size: of the matrices.
        seconds: largest time per rate.

    Raises:
        ResourceError: if a process fails.
    """
    found = _at_once(workers * threads, {"size": size, "outputs": outputs, "seconds": seconds})
    rates = {name: statistics.mean(one[name] for one in found) for name in found[0]}
    made = {name: rate * (1 if name in _BOUND_BY_MEMORY else threads) for name, rate in rates.items()}
    return made, statistics.median(one["busy"] for one in found)


def _at_once(count: int, asked: dict[str, Any]) -> list[dict[str, float]]:
    """Measurements of several processes at the same time."""
    processes = [
        subprocess.Popen(  # this interpreter, this package; -P: nothing from the working directory
            [sys.executable, "-P", "-m", "ntkpipe.linalg.rate_probe"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **worker_environment(1)},
        )
        for _ in range(count)
    ]
    timer = threading.Timer(_SECONDS, lambda: [process.kill() for process in processes])
    timer.start()
    try:
        for process in processes:
            _say(process, json.dumps(asked))
        for process in processes:
            _hear(process)
        for process in processes:
            _say(process, "go")
        return [json.loads(_hear(process)) for process in processes]
    finally:
        timer.cancel()
        for process in processes:
            process.kill()
            process.communicate()


def _say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(line + "\n")
        process.stdin.flush()


def _hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        code = process.wait()
        why = "it was killed, most likely for lack of memory" if code == -signal.SIGKILL else "its output is above"
        raise ResourceError(f"a process that measures dense algebra ended with {code}: {why}")
    return line


def measure_paths(store: ObjectStore, objects: int) -> dict[str, float]:
    """Bytes per second of one worker through checksum and store, without the medium."""
    data = np.random.default_rng(0).bytes(_OBJECT_BYTES)
    keys = [f"tuning/path-{os.getpid()}-{k}" for k in range(objects)]
    seconds = {}
    try:
        start = time.process_time()
        for key in keys:
            array = np.frombuffer(data, np.uint8).copy()
            store.put(key, [array, crc32c(array).to_bytes(4, "little")], overwrite=True)
        seconds["write_path"] = time.process_time() - start
        start = time.process_time()
        for key in keys:  # into new memory, as for a tile that is kept
            crc32c(np.frombuffer(store.get(key), np.uint8).copy())
        seconds["read_path"] = time.process_time() - start
    finally:
        for key in keys:
            store.delete(key)
    return {name: objects * _OBJECT_BYTES / max(taken, 1e-6) for name, taken in seconds.items()}
