"""Rooflines as values: phases in which resources work at the same time, and stages of phases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from ntkpipe.planning.memory import Peak


@dataclass(frozen=True)
class Phase:
    """What happens at the same time.

    Args:
        busy: seconds that each resource is busy; they overlap, and the busiest decides.
        processor_seconds: that all processes together compute.
    """

    busy: Mapping[str, float]
    processor_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Of the busiest."""
        return max(self.busy.values(), default=0.0)

    @property
    def bottleneck(self) -> str:
        """The busiest."""
        return max(self.busy, key=lambda name: self.busy[name])


@dataclass(frozen=True)
class Stage:
    """A stage's phases, one after the other, and the bytes that it moves.

    Args:
        name: of the stage.
        phases: in order.
        read, written: bytes from and to the store.
        moved: bytes over the network between nodes.
        stored: bytes that it leaves in the store.
        memory: at its peak, if it is known.
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
        """Of all phases and all processes."""
        return sum(phase.processor_seconds for phase in self.phases)

    @property
    def bottleneck(self) -> str:
        """The resource that most of its time is spent waiting for."""
        total: Counter[str] = Counter()
        for phase in self.phases:
            total[phase.bottleneck] += phase.seconds  # type: ignore[assignment]
        return max(total, key=lambda name: total[name])
