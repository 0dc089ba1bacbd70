"""Checkpoints of a solver in an object store. Only new data is appended, and nothing is written twice.

Each append writes one object, whose name is its first step: an `.npz` archive (plain arrays, no pickle) and four bytes of
CRC-32C over it. A solver with little state always appends at step 0 and so replaces its only object. Restoring stops at the
first incomplete, damaged, foreign or missing object, and the run continues from the last good one.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from ntkpipe.storage.checksum import crc32c
from ntkpipe.storage.protocol import MissingObjectError, ObjectStore

_HEADER = "header"
_ENTRY = re.compile(r"\d{8,}\.npz", re.ASCII)


class StoreCheckpoint:
    """A `Checkpoint` (see `ntkpipe.linalg.steps`) under a prefix of an object store.

    Args:
        store: the object store.
        prefix: prefix of the keys of this solve.
        fingerprint: fingerprint of everything that determines the solve (operator, starting block, products). Entries of another
            solve under the prefix are ignored, and the first append replaces them.
    """

    def __init__(self, store: ObjectStore, prefix: str, fingerprint: str) -> None:
        self._store = store
        self._prefix = prefix.rstrip("/")
        self._fingerprint = fingerprint

    def append(self, start: int, step: int, arrays: dict[str, np.ndarray]) -> None:
        """Store `arrays`, which the steps after `start` up to and including `step` have added."""
        header = json.dumps({"fingerprint": self._fingerprint, "start": start, "step": step}, sort_keys=True)
        packed: dict[str, Any] = dict(arrays)
        packed[_HEADER] = np.frombuffer(header.encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **packed)
        body = buffer.getbuffer()
        # Later entries belong to a run that this one replaces. Two runs may differ by rounding and must not be mixed.
        for key in list(self._store.list(self._prefix + "/")):
            if key > self._key(start):  # the entry itself is replaced atomically, so an interruption loses nothing
                self._store.delete(key)
        self._store.put(self._key(start), [body, struct.pack("<I", crc32c(body))], overwrite=True)

    def replay(self) -> Iterator[dict[str, np.ndarray]]:
        """The appended entries in order from step 0, one at a time, up to the first damaged, foreign or missing one."""
        start = 0
        while (found := self._read(start)) is not None:
            start, arrays = found
            yield arrays

    def restore(self) -> list[dict[str, np.ndarray]]:
        """All entries of `replay`."""
        return list(self.replay())

    def clear(self) -> None:
        """Delete every entry."""
        for key in list(self._store.list(self._prefix + "/")):
            self._store.delete(key)

    def _key(self, start: int) -> str:
        return f"{self._prefix}/{start:08d}.npz"

    def _read(self, start: int) -> tuple[int, dict[str, np.ndarray]] | None:
        try:
            found = _opened(self._store.get(self._key(start)))
        except MissingObjectError:
            return None
        if found is None:
            return None
        header, arrays = found
        if header.get("fingerprint") != self._fingerprint or header.get("start") != start or header["step"] <= start:
            return None
        return int(header["step"]), arrays


def damaged_entries(store: ObjectStore, prefix: str) -> Iterator[str]:
    """Keys of all checkpoint entries below `prefix` that are damaged or stored under a wrong key.

    The prefix of a checkpoint ends with its fingerprint, after a slash or a dot, so an entry shows where it belongs.
    """
    for key in list(store.list(prefix)):
        folder, _, name = key.rpartition("/")
        if not _ENTRY.fullmatch(name):
            continue  # a file of another program
        found = _opened(store.get(key))
        if found is None or not _belongs(folder, name.removesuffix(".npz"), found[0]):
            yield key


def _belongs(folder: str, start: str, header: dict[str, Any]) -> bool:
    fingerprint = str(header.get("fingerprint"))
    return f"/{folder}".endswith((f"/{fingerprint}", f".{fingerprint}")) and f"{header.get('start'):08d}" == start


def _opened(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """The header and arrays of an entry; None if it is damaged."""
    body = memoryview(data)[:-4]
    if len(data) < 4 or struct.pack("<I", crc32c(body)) != bytes(data[-4:]):
        return None
    try:
        with np.load(io.BytesIO(body), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        header = json.loads(arrays.pop(_HEADER).tobytes())
    except (ValueError, KeyError, OSError, zipfile.BadZipFile):
        return None
    return header, arrays
