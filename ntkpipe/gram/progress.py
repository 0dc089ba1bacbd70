"""Progress, rate and remaining time of a stage. This module only counts; callers pass the time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ntkpipe.events.event import Emit, Event, Kind, Tell
from ntkpipe.units import human_seconds

WINDOW_SECONDS = 120.0
"""Seconds over which the rate is averaged, so that it excludes the start-up and follows a machine that slows down."""


@dataclass
class Progress:
    """A counter of finished work.

    Args:
        stage: its name.
        total: units (tiles) of the whole stage.
        total_pairs: kernel evaluations of the whole stage.
        start: time at which the work began, in seconds of any clock.
        done: units that are finished.
        pairs: kernel evaluations of the finished units.
        now: time of the last change.
        retries: number of tasks that were started again because their worker was lost.
        copies: number of second copies of slow tasks.
    """

    stage: str
    total: int
    total_pairs: int
    start: float
    done: int = 0
    pairs: int = 0
    now: float = 0.0
    retries: int = 0
    copies: int = 0
    _computed: int = 0
    _window: deque[tuple[float, int]] = field(default_factory=deque, repr=False)

    def __post_init__(self) -> None:
        self.now = self.start
        self._window.append((self.start, 0))

    def reuse(self, units: int, pairs: int) -> None:
        """Count work that was stored before; it does not enter the rate."""
        self.done += units
        self.pairs += pairs

    def add(self, units: int, pairs: int, now: float) -> None:
        """Count work that was finished by the time `now`."""
        self.reuse(units, pairs)
        self.now = now
        self._computed += pairs
        self._window.append((now, self._computed))
        # Keep one entry from before the window as the start of the rate.
        while len(self._window) > 2 and self._window[1][0] <= now - WINDOW_SECONDS:
            self._window.popleft()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return self.now - self.start

    @property
    def rate(self) -> float | None:
        """Pairs per second in the recent window; None before anything was computed."""
        (before, old), (after, new) = self._window[0], self._window[-1]
        return (new - old) / (after - before) if after > before and new > old else None

    @property
    def eta(self) -> float | None:
        """Remaining seconds; None if the rate is unknown."""
        if self.done >= self.total:
            return 0.0
        rate = self.rate
        return None if rate is None else (self.total_pairs - self.pairs) / rate

    def record(self) -> dict[str, Any]:
        """Plain values for a status file."""
        return {
            "stage": self.stage,
            "done": self.done,
            "total": self.total,
            "pairs": self.pairs,
            "seconds": self.seconds,
            "rate": self.rate,
            "eta": self.eta,
            "retries": self.retries,
            "copies": self.copies,
        }

    def line(self) -> str:
        """One readable line."""
        share = 100 * self.pairs / self.total_pairs if self.total_pairs else 100.0
        text = f"{self.stage}: {self.done:,} of {self.total:,} tiles ({share:.0f}%)"
        if self.rate is not None:
            text += f", {self.rate:.3g} pairs/s"
        if self.eta:
            text += f", {human_seconds(self.eta)} to go"
        if self.retries:
            text += f", {self.retries:,} tasks restarted"
        if self.copies:
            text += f", {self.copies:,} second copies"
        return text


def tell_tiles(emit: Emit, tell: Tell) -> Callable[[Progress], None]:
    """A listener that reports the progress of a Gram stage and the restarts of its tasks as events.

    Args:
        emit: receives the events.
        tell: receives the lines of progress.
    """
    known = 0

    def listen(progress: Progress) -> None:
        nonlocal known
        if progress.retries > known:
            emit(Event(Kind.RETRY, progress.stage, facts={"tasks": progress.retries - known}))
            known = progress.retries
        text = progress.line().removeprefix(f"{progress.stage}: ")
        tell(text, force=progress.done >= progress.total, **progress.record())

    return listen
