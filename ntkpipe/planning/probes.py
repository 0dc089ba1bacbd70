"""Measures this machine: pairs of images in a process like a worker, the store, and rates of dense algebra.

`run` and `calibrate` store the results under `tuning/`, where a plan reads them. Measurements are needed, because the time
of a pair differs between networks on images by a factor of a million, and also between machines. Neither the edge of a
tile nor the time of a plan follows from the arithmetic.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ntkpipe import __version__
from ntkpipe.errors import ResourceError
from ntkpipe.kernels.spec import fingerprint
from ntkpipe.storage.checksum import digest
from ntkpipe.storage.protocol import MissingObjectError
from ntkpipe.storage.store import ObjectStore
from ntkpipe.tasks.environment import processor, worker_environment

_SECONDS = 300.0  # a process that takes longer hangs: the largest networks compile in a minute


@dataclass(frozen=True)
class PairSpeed:
    """The measured speed of a network's pairs.

    Args:
        seconds_per_pair: of one worker, for both kernels.
        pairs_per_step: columns of a tile that go through the layers at once with that speed.
        process_bytes: resident memory of a process that has evaluated pairs but no tile.
        tried: seconds per pair, by pairs per step.
        device: name of the measured device.
    """

    seconds_per_pair: float
    pairs_per_step: int
    process_bytes: int
    tried: Mapping[str, float]
    device: str

    @property
    def origin(self) -> str:
        """The origin of the speed, for the user."""
        tried = ", ".join(f"{seconds * 1e3:.3g} ms with {pairs} at a time" for pairs, seconds in self.tried.items())
        return f"measured on {self.device}, per pair: {tried}"

    def to_json(self) -> bytes:
        """The speed as JSON text."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> PairSpeed:
        """The inverse of `to_json`.

        Raises:
            ValueError: if the text is not a stored speed.
        """
        try:
            made = cls(**json.loads(data))
            if math.isfinite(made.seconds_per_pair) and made.seconds_per_pair > 0 and made.pairs_per_step >= 1:
                return made
        except (TypeError, ValueError) as error:
            raise ValueError(f"not a measurement: {error}") from error
        raise ValueError("not a measurement: its numbers are out of range")


def circumstances(threads: int) -> dict[str, Any]:
    """The conditions of a measurement, without the network and its images."""
    return {
        "ntkpipe": __version__,
        "jax": version("jax"),
        "jaxlib": version("jaxlib"),
        "processor": processor(),
        "threads": threads,
        "platforms": os.environ.get("JAX_PLATFORMS", ""),
        "devices": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
    }


def measure_pairs(
    spec: Sequence[Mapping[str, Any]],
    image_shape: Sequence[int],
    dtype: str,
    *,
    threads: int,
    pairs_per_step: int | None = None,
    edge: int | None = None,
) -> PairSpeed:
    """Measure the speed of pairs in a separate process, which ends before this returns.

    Args:
        spec: layers of the architecture.
        image_shape: `(h, w, c)`.
        dtype: of the computation.
        threads: per worker.
        pairs_per_step: the only number to try; None tries a few.
        edge: for a network that flattens its images: the rows of a whole tile, which is timed instead.

    Raises:
        ResourceError: if the process fails; the text includes its output.
    """
    asked = {
        "spec": list(spec),
        "image_shape": list(image_shape),
        "dtype": dtype,
        "pairs_per_step": pairs_per_step,
        "edge": edge,
    }
    command = [sys.executable, "-P", "-m", "ntkpipe.gram.pair_probe"]  # -P: not from the working directory
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter, this package
            command,
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            env={**os.environ, **worker_environment(threads)},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ResourceError(
            f"one pair of points takes longer than {_SECONDS:.0f} s to compile and evaluate: use a smaller network or "
            "data.downsample=2, or set grid.edge and grid.pairs_per_step to skip this measurement"
        ) from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise ResourceError(f"the kernel cannot be evaluated on this machine: {said[-1] if said else done.returncode}")
    return PairSpeed.from_json(done.stdout.strip().splitlines()[-1].encode())


def pair_speed_key(
    spec: Sequence[Mapping[str, Any]],
    image_shape: Sequence[int],
    dtype: str,
    *,
    threads: int,
    pairs_per_step: int | None,
) -> str:
    """The store key of a network's speed on this kind of machine; arguments as for `measure_pairs`."""
    asked = {
        "spec": fingerprint(spec),
        "image": list(image_shape),
        "dtype": dtype,
        "pairs_per_step": pairs_per_step,
        **circumstances(threads),
    }
    return f"tuning/{digest(asked)}.json"


def known_pair_speed(store: ObjectStore, key: str) -> PairSpeed | None:
    """The stored measurement, or None."""
    try:
        return PairSpeed.from_json(store.get(key))
    except (MissingObjectError, ValueError):
        return None


# Number of objects of the size of a tile. They are enough for a realistic rate, and take about a second.
_OBJECTS, _OBJECT_BYTES = 8, 16 << 20


@dataclass(frozen=True)
class DiskSpeed:
    """Rates of the store for one process, in bytes per second. `source` is the origin of the numbers."""

    read: float
    write: float
    source: str


def known_disk_speed(store: ObjectStore) -> DiskSpeed | None:
    """The stored measurement of this store from this machine, or None."""
    try:
        found = DiskSpeed(**json.loads(store.get(_disk_key(store))))
    except (MissingObjectError, ValueError, TypeError):
        return None
    return found if all(math.isfinite(x) and x > 0 for x in (found.read, found.write)) else None


def measure_disk(store: ObjectStore) -> DiskSpeed:
    """The stored speed of this store; if there is none, measure it and store the result.

    Reading is measured without the page cache, if the system allows to drop the written data from it.
    """
    if (found := known_disk_speed(store)) is not None:
        return found
    made = _time_disk(store)
    store.put(_disk_key(store), json.dumps(asdict(made)).encode(), overwrite=True)
    return made


def _disk_key(store: ObjectStore) -> str:
    return f"tuning/disk-{digest([platform.node(), store.url])}.json"


def _time_disk(store: ObjectStore) -> DiskSpeed:
    data = os.urandom(_OBJECT_BYTES)
    keys = [f"tuning/probe-{os.getpid()}-{k}" for k in range(_OBJECTS)]
    try:
        start = time.perf_counter()
        for key in keys:
            store.put(key, data, overwrite=True)
            _flush(store, key)
        written = time.perf_counter() - start
        start = time.perf_counter()
        for key in keys:
            store.get(key)
        read = time.perf_counter() - start
    finally:
        for key in keys:
            store.delete(key)
    size = _OBJECTS * _OBJECT_BYTES
    return DiskSpeed(size / read, size / written, "measured")


def _flush(store: ObjectStore, key: str) -> None:
    """Flush files to the medium and drop them from the page cache. Does nothing for a store that is not a folder."""
    path = Path(store.url.removeprefix("file://")) / key
    if not path.is_file():
        return
    with path.open("rb") as file, contextlib.suppress(OSError):
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
