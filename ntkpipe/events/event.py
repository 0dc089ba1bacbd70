"""Events of long computations, and listeners for them.

A computation gets a function `emit: Emit` and calls it with events. The listener behind it prints terminal lines, writes a
run log, updates an experiment tracker, or shows a bar in a notebook. `teller` converts an `Emit` to the short form
`tell(line, force=False, **facts)`, which solvers use.

A listener runs in the thread of the computation and must return quickly. An exception in a listener ends the computation;
safe points for stopping use this. Listeners that must not fail, such as trackers, catch their own errors.
"""

from __future__ import annotations

import contextlib
import enum
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


class Kind(enum.StrEnum):
    """The kind of an event."""

    RUN_BEGUN = "run begun"
    STAGE_BEGUN = "stage begun"
    PROGRESS = "progress"
    TILES_DONE = "tiles done"
    NOTE = "note"
    WARNING = "warning"
    RETRY = "retry"
    STAGE_DONE = "stage done"
    STAGE_STOPPED = "stage stopped"
    RUN_DONE = "run done"


PROGRESS = (Kind.PROGRESS, Kind.TILES_DONE)
"""Kinds that are repeated often; listeners may skip such events."""

UNITS: Mapping[str, str] = {
    "done": "units of work",
    "total": "units of work",
    "pairs": "pairs of points",
    "rate": "pairs of points per second",
    "seconds": "s",
    "elapsed": "s",
    "eta": "s",
    "store_read": "B",
    "store_written": "B",
}
"""Units of the numbers in an event's facts. Numbers that are not listed here are counts or ratios."""


@dataclass(frozen=True)
class Event:
    """One event.

    Args:
        kind: of the event.
        stage: `data`, `gram`, `solve`, `predict` or `report`; empty if the event belongs to no stage.
        text: a line for the user, without the stage; may be empty.
        facts: JSON-ready values by name; `UNITS` lists the units of numbers.
        elapsed: seconds since the stage began.
        prompt: whether listeners that pace progress must show the event at once.
    """

    kind: Kind
    stage: str = ""
    text: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    elapsed: float = 0.0
    prompt: bool = False


Emit = Callable[[Event], None]
"""A listener: a function that receives events."""


class Tell(Protocol):
    """The short form of a listener, for progress within a stage."""

    def __call__(self, line: str, *, force: bool = False, **facts: Any) -> None:
        """Report a line of text with its facts; `force` shows it at once."""
        ...


def silent(event: Event) -> None:
    """A listener that ignores events."""


def tell_nobody(line: str, *, force: bool = False, **facts: Any) -> None:
    """A short form that ignores progress."""


def to_all(*listeners: Emit) -> Emit:
    """A listener that passes events to several listeners in order."""

    def emit(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return emit


def teller(emit: Emit, stage: str, kind: Kind = Kind.PROGRESS) -> Tell:
    """The short form for the progress of a stage, which begins now."""
    began = time.monotonic()

    def tell(line: str, *, force: bool = False, **facts: Any) -> None:
        emit(Event(kind, stage, line, facts, time.monotonic() - began, force))

    return tell


@contextlib.contextmanager
def stage(emit: Emit, name: str, kind: Kind = Kind.PROGRESS) -> Iterator[Tell]:
    """Context manager that reports the start of a stage, and its stop on an error; yields the `Tell` for its progress."""
    emit(Event(Kind.STAGE_BEGUN, name))
    try:
        yield teller(emit, name, kind)
    except BaseException as error:
        emit(Event(Kind.STAGE_STOPPED, name, str(error), {"error": type(error).__name__}))
        raise


class Paced:
    """A listener that passes progress on at most every `every` seconds, and other events and prompt ones at once.

    Args:
        listener: receives the events.
        every: seconds. The first progress of a stage is always passed on.
    """

    def __init__(self, listener: Emit, every: float = 2.0) -> None:
        self._listener, self._every = listener, every
        self._last: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        """Pass an event on or skip it."""
        if event.kind is Kind.STAGE_BEGUN:
            self._last.pop(event.stage, None)
        if event.kind in PROGRESS:
            now = time.monotonic()
            if not event.prompt and now - self._last.get(event.stage, -float("inf")) < self._every:
                return
            self._last[event.stage] = now
        self._listener(event)
