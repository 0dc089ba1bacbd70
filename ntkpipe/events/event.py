"""What long work tells while it goes on: one type of event, and one way to listen.

Whoever computes takes an `emit: Emit` and calls it with an `Event`. Whoever wants to know passes a function of one event: a
terminal line, a run log, an experiment tracker, a bar in a notebook. `teller` makes of an `Emit` the short form
`tell(line, force=False, **facts)`, which solvers take.

A listener is called in the thread that computes. It returns soon, and an exception that it raises ends the work: safe points
for stopping are made so. Listeners that must not fail (trackers) see to that themselves.
"""

from __future__ import annotations

import contextlib
import enum
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


class Kind(enum.StrEnum):
    """What has happened."""

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
"""Kinds that come again and again, and that listeners may leave out."""

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
"""Units of the numbers among an event's facts; those that are not named here are counts or ratios."""


@dataclass(frozen=True)
class Event:
    """One thing that has happened.

    Args:
        kind: of the event.
        stage: of the run: `data`, `gram`, `solve`, `predict`, `report`; empty where it belongs to none.
        text: a line for people, without the stage; empty where there is nothing to say.
        facts: JSON-ready values by name; of numbers `UNITS` tells the unit.
        elapsed: seconds since the stage began.
        prompt: told at once, where a listener shows progress only every few seconds.
    """

    kind: Kind
    stage: str = ""
    text: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    elapsed: float = 0.0
    prompt: bool = False


Emit = Callable[[Event], None]
"""Receives events; what a listener is, and what whoever computes calls."""


class Tell(Protocol):
    """The short form for progress within a stage."""

    def __call__(self, line: str, *, force: bool = False, **facts: Any) -> None:
        """Tell a line for people, at once if `force`, and facts about it."""
        ...


def silent(event: Event) -> None:
    """A listener that tells nobody."""


def tell_nobody(line: str, *, force: bool = False, **facts: Any) -> None:
    """The short form that tells nobody."""


def to_all(*listeners: Emit) -> Emit:
    """A listener that passes events on to several, in their order."""

    def emit(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return emit


def teller(emit: Emit, stage: str, kind: Kind = Kind.PROGRESS) -> Tell:
    """Progress of a stage that begins now, in the short form."""
    began = time.monotonic()

    def tell(line: str, *, force: bool = False, **facts: Any) -> None:
        emit(Event(kind, stage, line, facts, time.monotonic() - began, force))

    return tell


@contextlib.contextmanager
def stage(emit: Emit, name: str, kind: Kind = Kind.PROGRESS) -> Iterator[Tell]:
    """Say that a stage begins, and that it stops if it does; gives what its progress is told to."""
    emit(Event(Kind.STAGE_BEGUN, name))
    try:
        yield teller(emit, name, kind)
    except BaseException as error:
        emit(Event(Kind.STAGE_STOPPED, name, str(error), {"error": type(error).__name__}))
        raise


class Paced:
    """Passes on the progress of a stage at most once in `every` seconds; all other events, and prompt ones, at once.

    Args:
        listener: that receives them.
        every: seconds; the first progress after a stage has begun is always passed on.
    """

    def __init__(self, listener: Emit, every: float = 2.0) -> None:
        self._listener, self._every = listener, every
        self._last: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        """Pass an event on, or leave it out."""
        if event.kind is Kind.STAGE_BEGUN:
            self._last.pop(event.stage, None)
        if event.kind in PROGRESS:
            now = time.monotonic()
            if not event.prompt and now - self._last.get(event.stage, -float("inf")) < self._every:
                return
            self._last[event.stage] = now
        self._listener(event)
