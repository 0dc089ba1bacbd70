"""Objects in the memory of one process: for tests and small problems in a notebook."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ntkpipe.errors import HeldError
from ntkpipe.storage.clock import now
from ntkpipe.storage.lease import HeldLease
from ntkpipe.storage.protocol import Buffer, Lease, MissingObjectError, as_parts, check_key, check_span
from ntkpipe.storage.statistics import Statistics


@dataclass
class _Content:
    objects: dict[str, np.ndarray] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


_contents: dict[str, _Content] = {}


@dataclass(frozen=True)
class MemoryStore:
    """`ObjectStore` named `name`; handles of one name share their objects within a process, and only there."""

    name: str

    @property
    def url(self) -> str:
        """`memory://` and the name."""
        return f"memory://{self.name}"

    @property
    def _content(self) -> _Content:
        return _contents.setdefault(self.name, _Content())

    def get(self, key: str) -> bytes:
        """The object's bytes."""
        try:
            return self._content.objects[check_key(key)].tobytes()
        except KeyError:
            raise MissingObjectError(f"there is no object {self.url}/{key}") from None

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """The object's bytes `[start:stop]`."""
        check_span(start, stop)
        return self.get(key)[start:stop]

    def put(self, key: str, data: Buffer | Sequence[Buffer], *, overwrite: bool = False) -> bool:
        """Store an object atomically."""
        # NumPy copies without Python's lock: a large object holds nobody up.
        parts = [np.frombuffer(memoryview(part).cast("B"), np.uint8) for part in as_parts(data) if len(part)]
        joined = np.empty(sum(map(len, parts)), np.uint8)
        for part, start in zip(parts, np.cumsum([0, *map(len, parts)])[:-1], strict=True):
            joined[start : start + len(part)] = part
        with self._content.lock:
            if not overwrite and check_key(key) in self._content.objects:
                return False
            self._content.objects[check_key(key)] = joined
            return True

    def exists(self, key: str) -> bool:
        """True if the object is there."""
        return check_key(key) in self._content.objects

    def size(self, key: str) -> int:
        """Bytes of the object."""
        try:
            return len(self._content.objects[check_key(key)])
        except KeyError:
            raise MissingObjectError(f"there is no object {self.url}/{key}") from None

    def list(self, prefix: str = "") -> Iterator[str]:
        """Keys that start with `prefix`, sorted."""
        yield from sorted(key for key in list(self._content.objects) if key.startswith(prefix))

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Keys that start with `prefix`, sorted, and the bytes of each."""
        found = dict(self._content.objects)
        yield from sorted((key, len(data)) for key, data in found.items() if key.startswith(prefix))

    def folders(self, prefix: str = "") -> list[str]:
        """Folders directly below `prefix`, sorted."""
        start = prefix.rstrip("/") + "/" if prefix else ""
        below = [key[len(start) :] for key in self.list(start)]
        return sorted({key.partition("/")[0] for key in below if "/" in key})

    def foreign(self) -> Sequence[str]:
        """Nothing: no other program sees this memory."""
        return []

    def delete(self, key: str) -> None:
        """Remove the object if it is there."""
        self._content.objects.pop(check_key(key), None)

    def delete_all(self, keys: Iterable[str]) -> None:
        """Remove those of the objects that are there."""
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
        """Who holds `name`."""
        held = self._content.held.get(check_key(name))
        return None if held is None else f"{name} in {self.url} is held by {held}. Wait for it to end, or stop it."

    def free_bytes(self) -> int | None:
        """None: memory has no fixed share."""
        return None

    def sweep(self, prefix: str = "", *, older_than: float = 3600.0) -> Sequence[str]:
        """Nothing: a write in memory leaves no leftovers."""
        return []

    def statistics(self) -> Statistics:
        """Empty: no server is asked."""
        return Statistics()
