"""How fast the store is read and written: a short measurement, kept with it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from ntkpipe.storage.checksum import digest
from ntkpipe.storage.protocol import MissingObjectError
from ntkpipe.storage.store import ObjectStore

# Objects of the size of a tile, enough of them for a disk to show what it can, few enough to take a second.
_OBJECTS, _OBJECT_BYTES = 8, 16 << 20


@dataclass(frozen=True)
class DiskSpeed:
    """Bytes per second of one process; `source` says where the numbers come from."""

    read: float
    write: float
    source: str


ASSUMED = DiskSpeed(5e8, 3e8, "assumed")
"""A solid-state disk, or a shared file system that others use as well."""


def disk_speed(store: ObjectStore, *, may_measure: bool) -> DiskSpeed:
    """What was measured of this store from this machine, now or by an earlier run; `ASSUMED` if that may not be.

    Reading counts from the medium: what was written is put out of the page cache first, where the system allows it.
    """
    key = f"tuning/disk-{digest([platform.node(), store.url])}.json"
    try:
        found = DiskSpeed(**json.loads(store.get(key)))
        if all(math.isfinite(x) and x > 0 for x in (found.read, found.write)):
            return found
    except (MissingObjectError, ValueError, TypeError):
        pass
    if not may_measure:
        return ASSUMED
    made = _measure(store)
    store.put(key, json.dumps(asdict(made)).encode(), overwrite=True)
    return made


def _measure(store: ObjectStore) -> DiskSpeed:
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
