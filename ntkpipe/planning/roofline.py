"""Roofline model: phases, in which resources work at the same time, and stages, which are sequences of phases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from ntkpipe.planning.memory import Peak


@dataclass(frozen=True)
class Phase:
    """Work of several resources at the same time.

    Args:
        busy: seconds that each resource is busy. They overlap, so the largest determines the duration.
        processor_seconds: computing time, summed over all processes.
    """

    busy: Mapping[str, float]
    processor_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of the busiest resource."""
        return max(self.busy.values(), default=0.0)

    @property
    def bottleneck(self) -> str:
        """The busiest resource."""
        return max(self.busy, key=lambda name: self.busy[name])


@dataclass(frozen=True)
class Stage:
    """A stage's phases, one after the other, and the bytes that it moves.

    Args:
        name: of the stage.
        phases: in order.
        read: bytes read from the store.
        written: bytes written to the store.
        moved: bytes sent over the network between nodes.
        stored: bytes that remain in the store.
        memory: peak memory, if it is known.
    """

    name: str
    phases: tuple[Phase, ...]
    read: float = 0.0
    written: float = 0.0
    moved: float = 0.0
    stored: float = 0.0
    memory: Peak | None = None

    @property
    def seconds(self) -> float:
        """Wall time of all phases."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def processor_seconds(self) -> float:
        """Computing time, summed over all phases and processes."""
        return sum(phase.processor_seconds for phase in self.phases)

    @property
    def bottleneck(self) -> str:
        """The resource that determines most of the stage's duration."""
        total: Counter[str] = Counter()
        for phase in self.phases:
            total[phase.bottleneck] += phase.seconds  # type: ignore[assignment]
        return max(total, key=lambda name: total[name])
