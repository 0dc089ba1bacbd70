"""Stores objects in the memory of one process, for tests and small problems in a notebook."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from ntkpipe.errors import HeldError
from ntkpipe.storage.clock import now
from ntkpipe.storage.lease import HeldLease
from ntkpipe.storage.protocol import Buffer, Lease, MissingObjectError, as_parts, check_key, check_span
from ntkpipe.storage.statistics import Statistics


@dataclass
class _Content:
    objects: dict[str, list[np.ndarray]] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


_contents: dict[str, _Content] = {}


@dataclass(frozen=True)
class MemoryStore:
    """An `ObjectStore` in memory. Handles with the same name share their objects, but only within one process."""

    name: str

    @property
    def url(self) -> str:
        """The URL, `memory://` and the name."""
        return f"memory://{self.name}"

    @property
    def _content(self) -> _Content:
        return _contents.setdefault(self.name, _Content())

    def get(self, key: str) -> bytes:
        """Return the object's bytes."""
        try:
            parts = self._content.objects[check_key(key)]
            return parts[0].tobytes() if len(parts) == 1 else b"".join(part.data for part in parts)
        except KeyError:
            raise MissingObjectError(f"there is no object {self.url}/{key}") from None

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Return the object's bytes `[start:stop]`."""
        check_span(start, stop)
        return self.get(key)[start:stop]

    def put(self, key: str, data: Buffer | Sequence[Buffer], *, overwrite: bool = False) -> bool:
        """Store an object atomically."""
        single = isinstance(data, (bytes, bytearray, memoryview, np.ndarray))
        buffers: Sequence[Buffer] = [cast(Buffer, data)] if single else cast(Sequence[Buffer], data)
        parts = [_kept(buffer) for buffer in buffers]
        with self._content.lock:
            if not overwrite and check_key(key) in self._content.objects:
                return False
            self._content.objects[check_key(key)] = parts
            return True

    def exists(self, key: str) -> bool:
        """Return whether the object exists."""
        return check_key(key) in self._content.objects

    def size(self, key: str) -> int:
        """Return the size of the object in bytes."""
        try:
            return sum(map(len, self._content.objects[check_key(key)]))
        except KeyError:
            raise MissingObjectError(f"there is no object {self.url}/{key}") from None

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys that start with `prefix`, sorted."""
        yield from sorted(key for key in list(self._content.objects) if key.startswith(prefix))

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Yield the keys that start with `prefix`, sorted, and the size of each object in bytes."""
        found = dict(self._content.objects)
        yield from sorted((key, sum(map(len, parts))) for key, parts in found.items() if key.startswith(prefix))

    def folders(self, prefix: str = "") -> list[str]:
        """Return the names of the folders directly below `prefix`, sorted."""
        start = prefix.rstrip("/") + "/" if prefix else ""
        below = [key[len(start) :] for key in self.list(start)]
        return sorted({key.partition("/")[0] for key in below if "/" in key})

    def foreign(self) -> Sequence[str]:
        """Return an empty list, because no other program sees this memory."""
        return []

    def delete(self, key: str) -> None:
        """Delete the object if it exists."""
        self._content.objects.pop(check_key(key), None)

    def delete_all(self, keys: Iterable[str]) -> None:
        """Delete all of these objects that exist."""
        for key in keys:
            self.delete(key)

    @contextlib.contextmanager
    def lease(self, name: str, *, holder: dict[str, Any] | str) -> Iterator[Lease]:
        """Hold `name` until the block ends or the process dies."""
        content = self._content
        with content.lock:
            if (who := self.holder(name)) is not None:
                raise HeldError(who)
            since = now()
            content.held[name] = f"process {os.getpid()} on {socket.gethostname()} since {since} ({holder})"
        try:
            yield HeldLease(name)
        finally:
            del content.held[name]

    def holder(self, name: str) -> str | None:
        """Return a text on the holder of `name`, or None."""
        held = self._content.held.get(check_key(name))
        return None if held is None else f"{name} in {self.url} is held by {held}. Wait for it to end, or stop it."

    def free_bytes(self) -> int | None:
        """Return None, because the limit of memory is unknown."""
        return None

    def sweep(self, prefix: str = "", *, older_than: float = 3600.0) -> Sequence[str]:
        """Do nothing, because writes in memory leave no leftovers."""
        return []

    def statistics(self) -> Statistics:
        """Return empty statistics, because there is no server."""
        return Statistics()


def _kept(buffer: Buffer) -> np.ndarray:
    """Return the bytes of one buffer as a flat array.

    A buffer that cannot change is not copied: `bytes`, or a read-only array that owns its memory.
    """
    (part,) = as_parts(buffer) or [memoryview(b"")]
    flat = np.frombuffer(part, np.uint8)
    owned = isinstance(buffer, np.ndarray) and buffer.flags.owndata and not buffer.flags.writeable
    # NumPy copies without Python's lock, so a large object blocks no other thread.
    return flat if owned or isinstance(buffer, bytes) else flat.copy()
