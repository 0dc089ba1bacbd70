"""What is measured of this machine: pairs of images in a process like a worker's, the store, and rates of dense algebra.

`run` and `calibrate` measure, and keep what they found in the store under `tuning/`; a plan reads it there.

Networks that look at images differ by a factor of a million in the time of a pair, and so do machines: neither the edge of
a tile nor the time of a plan can be guessed from their arithmetic.
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

_SECONDS = 300.0  # a process that takes longer is stuck: the largest networks compile in a minute


@dataclass(frozen=True)
class PairSpeed:
    """What was measured.

    Args:
        seconds_per_pair: of one worker, both kernels.
        pairs_per_step: columns of a tile that go through the layers together at that speed.
        process_bytes: resident memory of a process that has evaluated pairs, before any tile.
        tried: seconds per pair by pairs per step.
        device: that it was measured on.
    """

    seconds_per_pair: float
    pairs_per_step: int
    process_bytes: int
    tried: Mapping[str, float]
    device: str

    @property
    def origin(self) -> str:
        """For people."""
        tried = ", ".join(f"{seconds * 1e3:.3g} ms with {pairs} at a time" for pairs, seconds in self.tried.items())
        return f"measured on {self.device}, per pair: {tried}"

    def to_json(self) -> bytes:
        """As text."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> PairSpeed:
        """The inverse of `to_json`.

        Raises:
            ValueError: if it is none.
        """
        try:
            made = cls(**json.loads(data))
            if math.isfinite(made.seconds_per_pair) and made.seconds_per_pair > 0 and made.pairs_per_step >= 1:
                return made
        except (TypeError, ValueError) as error:
            raise ValueError(f"not a measurement: {error}") from error
        raise ValueError("not a measurement: its numbers are out of range")


def circumstances(threads: int) -> dict[str, Any]:
    """Everything besides the network and its images that a measurement depends on."""
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
    """Measure in a process of its own, which ends before this returns.

    Args:
        spec: layers of the architecture.
        image_shape: `(h, w, c)`.
        dtype: of the computation.
        threads: of a worker.
        pairs_per_step: the only one to try; None tries a few.
        edge: of a network that flattens its images: time whole tiles of so many rows, not numbers of pairs.

    Raises:
        ResourceError: if the process fails; the text holds what it said.
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
            f"one pair of points takes longer than {_SECONDS:.0f} s to compile and evaluate: use a smaller network, "
            "data.downsample=2, or give grid.edge and grid.pairs_per_step, and nothing is measured"
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
    """Where the speed of a network on a machine like this one is kept; arguments as of `measure_pairs`."""
    asked = {
        "spec": fingerprint(spec),
        "image": list(image_shape),
        "dtype": dtype,
        "pairs_per_step": pairs_per_step,
        **circumstances(threads),
    }
    return f"tuning/{digest(asked)}.json"


def known_pair_speed(store: ObjectStore, key: str) -> PairSpeed | None:
    """What was measured, or None."""
    try:
        return PairSpeed.from_json(store.get(key))
    except (MissingObjectError, ValueError):
        return None


# Objects of the size of a tile, enough of them for a disk to show what it can, few enough to take a second.
_OBJECTS, _OBJECT_BYTES = 8, 16 << 20


@dataclass(frozen=True)
class DiskSpeed:
    """Bytes per second of one process; `source` says where the numbers come from."""

    read: float
    write: float
    source: str


def known_disk_speed(store: ObjectStore) -> DiskSpeed | None:
    """What was measured of this store from this machine, or None."""
    try:
        found = DiskSpeed(**json.loads(store.get(_disk_key(store))))
    except (MissingObjectError, ValueError, TypeError):
        return None
    return found if all(math.isfinite(x) and x > 0 for x in (found.read, found.write)) else None


def measure_disk(store: ObjectStore) -> DiskSpeed:
    """What is known of this store, or what it does now, which is kept with it.

    Reading counts from the medium: what was written is put out of the page cache first, where the system allows it.
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
    """Onto the medium and out of the page cache; of a store that is no folder, nothing."""
    path = Path(store.url.removeprefix("file://")) / key
    if not path.is_file():
        return
    with path.open("rb") as file, contextlib.suppress(OSError):
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
