"""What stores were asked for: requests, repetitions and bytes, by kind of request; also by other processes, if they tell."""

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
        requests: sent, repetitions included.
        retries: repetitions among them.
        bytes_read: of objects that arrived whole.
        bytes_written: of objects that were stored.
    """

    requests: int = 0
    retries: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    def __add__(self, other: Requests) -> Requests:
        return Requests(*(getattr(self, name) + getattr(other, name) for name in Requests.__dataclass_fields__))


@dataclass(frozen=True)
class Statistics:
    """Requests of a process to one store, or to several, since its start; empty where no server is asked.

    Args:
        kinds: by kind: `get`, `put`, `size`, `list` and `delete`.
        causes: why requests were repeated: `throttled` (429, 503), `server` (other 5xx), `connection` (refused, reset,
            timed out, a body cut short) or `conflict` (two writers of one object at the same moment).
        waited: seconds slept between repetitions, summed over threads.
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
    """Collects `Statistics`, from any thread; see `Exchange.counters`."""

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


Report = tuple[str, Statistics]
"""Who tells, and all that it has asked of stores since its start."""


class Exchange:
    """All that one process has asked of stores, and what other processes have told it of theirs; from any thread."""

    def __init__(self) -> None:
        self._name = uuid.uuid4().hex
        self._mine: list[Counters] = []
        self._heard: dict[str, Statistics] = {}
        self._lock = threading.Lock()

    def counters(self) -> Counters:
        """New ones, whose counts `report` tells; of one store."""
        made = Counters()
        with self._lock:
            self._mine.append(made)
        return made

    def report(self) -> Report | None:
        """What this process tells others, with whatever it sends them; None before its first request."""
        made = sum((counters.snapshot() for counters in self._mine), Statistics())
        return (self._who(), made) if made.requests else None

    def hear(self, told: Report | None) -> None:
        """Take in the report of another process. One that is lost is made up for by the next, and none counts twice.

        This process's own changes nothing, nor does one that comes late.
        """
        if told is None:
            return
        who, said = told
        with self._lock:
            known = self._heard.get(who)
            if who != self._who() and (known is None or said.requests > known.requests):
                self._heard[who] = said

    def heard(self) -> Statistics:
        """Sum of what other processes have told."""
        with self._lock:
            return sum(self._heard.values(), Statistics())

    def _who(self) -> str:
        return f"{self._name}-{os.getpid()}"  # a fork is another process


PROCESS = Exchange()
"""Of this process: one, since buckets are shared by all who open them."""
