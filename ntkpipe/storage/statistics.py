"""What a store was asked for: requests, repetitions and bytes, by kind of request."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Requests:
    """Counts of one kind of request.

    Args:
        requests: sent, repetitions included.
        retries: repetitions among them.
        bytes_read: of objects that arrived whole.
        bytes_written: of objects that were stored.
    """

    requests: int = 0
    retries: int = 0
    bytes_read: int = 0
    bytes_written: int = 0


@dataclass(frozen=True)
class Statistics:
    """Requests of this process to one store since its start; empty where no server is asked.

    Args:
        kinds: by kind: `get`, `put`, `size`, `list` and `delete`.
        causes: why requests were repeated: `throttled` (429, 503), `server` (other 5xx), `connection` (refused, reset,
            timed out, a body cut short) or `conflict` (two writers of one object at the same moment).
        waited: seconds slept between repetitions, summed over threads.
    """

    kinds: Mapping[str, Requests] = field(default_factory=dict)
    causes: Mapping[str, int] = field(default_factory=dict)
    waited: float = 0.0

    @property
    def requests(self) -> int:
        """Of all kinds."""
        return sum(kind.requests for kind in self.kinds.values())

    @property
    def retries(self) -> int:
        """Of all kinds."""
        return sum(kind.retries for kind in self.kinds.values())

    @property
    def bytes_read(self) -> int:
        """Of all kinds."""
        return sum(kind.bytes_read for kind in self.kinds.values())

    @property
    def bytes_written(self) -> int:
        """Of all kinds."""
        return sum(kind.bytes_written for kind in self.kinds.values())


class Counters:
    """Collects `Statistics`, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._causes: Counter[str] = Counter()
        self._waited = 0.0

    def sent(self, kind: str) -> None:
        """One request went out."""
        with self._lock:
            self._counts[kind, "requests"] += 1

    def done(self, kind: str, *, read: int = 0, written: int = 0) -> None:
        """Bytes arrived."""
        with self._lock:
            self._counts[kind, "bytes_read"] += read
            self._counts[kind, "bytes_written"] += written

    def repeats(self, kind: str, cause: str, waited: float) -> None:
        """The next one is a repetition."""
        with self._lock:
            self._counts[kind, "retries"] += 1
            self._causes[cause] += 1
            self._waited += waited

    def snapshot(self) -> Statistics:
        """The counts as they are now."""
        with self._lock:
            kinds = {
                kind: Requests(**{name: self._counts[kind, name] for name in Requests.__dataclass_fields__})
                for kind in sorted({kind for kind, _ in self._counts})
            }
            return Statistics(kinds, dict(self._causes), self._waited)
