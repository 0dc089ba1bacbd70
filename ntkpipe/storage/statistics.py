"""Counts requests to stores: requests, repetitions and bytes by kind of request.

The counts include those of other processes that report them.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Requests:
    """Counts of one kind of request.

    Args:
        requests: number of requests sent, including repetitions.
        retries: number of repetitions among them.
        bytes_read: bytes of objects that arrived whole.
        bytes_written: bytes of objects that were stored.
    """

    requests: int = 0
    retries: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    def __add__(self, other: Requests) -> Requests:
        return Requests(*(getattr(self, name) + getattr(other, name) for name in Requests.__dataclass_fields__))


@dataclass(frozen=True)
class Statistics:
    """Requests of a process to stores since its start; empty without a server.

    Args:
        kinds: counts by kind of request: `get`, `put`, `size`, `list` and `delete`.
        causes: number of repetitions by cause: `throttled` (429, 503), `server` (other 5xx), `connection` (refused,
            reset, timed out, an incomplete body) or `conflict` (two writers of one object at the same moment).
        waited: seconds of pauses before repetitions, summed over threads.
    """

    kinds: Mapping[str, Requests] = field(default_factory=dict)
    causes: Mapping[str, int] = field(default_factory=dict)
    waited: float = 0.0

    def __add__(self, other: Statistics) -> Statistics:
        kinds = {
            kind: self.kinds.get(kind, Requests()) + other.kinds.get(kind, Requests())
            for kind in sorted({*self.kinds, *other.kinds})
        }
        return Statistics(kinds, Counter(self.causes) + Counter(other.causes), self.waited + other.waited)

    @property
    def requests(self) -> int:
        """Number of requests of all kinds."""
        return sum(kind.requests for kind in self.kinds.values())

    @property
    def retries(self) -> int:
        """Number of repetitions of all kinds."""
        return sum(kind.retries for kind in self.kinds.values())

    @property
    def bytes_read(self) -> int:
        """Bytes read by requests of all kinds."""
        return sum(kind.bytes_read for kind in self.kinds.values())

    @property
    def bytes_written(self) -> int:
        """Bytes written by requests of all kinds."""
        return sum(kind.bytes_written for kind in self.kinds.values())


class Counters:
    """Counts requests for `Statistics`. Any thread may use it. `Exchange.counters` makes it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._causes: Counter[str] = Counter()
        self._waited = 0.0

    def sent(self, kind: str) -> None:
        """Count one request that was sent."""
        with self._lock:
            self._counts[kind, "requests"] += 1

    def done(self, kind: str, *, read: int = 0, written: int = 0) -> None:
        """Count the bytes of a finished request."""
        with self._lock:
            self._counts[kind, "bytes_read"] += read
            self._counts[kind, "bytes_written"] += written

    def repeats(self, kind: str, cause: str, waited: float) -> None:
        """Count a repetition, its cause and the pause before it in seconds."""
        with self._lock:
            self._counts[kind, "retries"] += 1
            self._causes[cause] += 1
            self._waited += waited

    def snapshot(self) -> Statistics:
        """Return the current counts."""
        with self._lock:
            kinds = {
                kind: Requests(**{name: self._counts[kind, name] for name in Requests.__dataclass_fields__})
                for kind in sorted({kind for kind, _ in self._counts})
            }
            return Statistics(kinds, dict(self._causes), self._waited)


Report = tuple[str, Statistics]
"""The name of a process, and its requests to stores since its start."""


class Exchange:
    """Requests of one process to stores, and requests that other processes reported to it. It is thread-safe."""

    def __init__(self) -> None:
        self._name = uuid.uuid4().hex
        self._mine: list[Counters] = []
        self._heard: dict[str, Statistics] = {}
        self._lock = threading.Lock()

    def counters(self) -> Counters:
        """Return new counters of one store, which `report` includes."""
        made = Counters()
        with self._lock:
            self._mine.append(made)
        return made

    def report(self) -> Report | None:
        """Return the report of this process, which is sent with its results; None before its first request."""
        made = sum((counters.snapshot() for counters in self._mine), Statistics())
        return (self._who(), made) if made.requests else None

    def hear(self, told: Report | None) -> None:
        """Take in the report of another process.

        Reports hold totals, so a lost report does no harm and none counts twice. This process's own report and reports
        that arrive late change nothing.
        """
        if told is None:
            return
        who, said = told
        with self._lock:
            known = self._heard.get(who)
            if who != self._who() and (known is None or said.requests > known.requests):
                self._heard[who] = said

    def heard(self) -> Statistics:
        """Return the sum of the reports of other processes."""
        with self._lock:
            return sum(self._heard.values(), Statistics())

    def _who(self) -> str:
        return f"{self._name}-{os.getpid()}"  # the process id distinguishes forks


PROCESS = Exchange()
"""The exchange of this process. There is only one, because all users of a bucket share it."""
