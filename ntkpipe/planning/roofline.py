"""Rooflines as values: phases in which resources work at the same time, stages of phases, and a run of stages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from ntkpipe.gram.plan import GramPlan
from ntkpipe.planning.machine import Machine


@dataclass(frozen=True)
class Phase:
    """Seconds that each resource is busy; they overlap."""

    busy: Mapping[str, float]

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
    """

    name: str
    phases: tuple[Phase, ...]
    read: float = 0.0
    written: float = 0.0
    moved: float = 0.0
    stored: float = 0.0

    @property
    def seconds(self) -> float:
        """Of all phases."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def bottleneck(self) -> str:
        """The resource that most of its time is spent waiting for."""
        total: Counter[str] = Counter()
        for phase in self.phases:
            total[phase.bottleneck] += phase.seconds  # type: ignore[assignment]
        return max(total, key=lambda name: total[name])


@dataclass(frozen=True)
class Projection:
    """All stages of a run on a machine.

    Args:
        machine: that it is for.
        plan: of its tiles.
        stages: in order.
        notes: what does not fit, and what to do.
    """

    machine: Machine
    plan: GramPlan
    stages: tuple[Stage, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def node_hours(self) -> float:
        """Nodes times hours."""
        return self.machine.nodes.value * self.seconds / 3600

    @property
    def cost(self) -> float:
        """In the currency of the machine's price."""
        return self.node_hours * self.machine.price.value

    @property
    def stored(self) -> float:
        """Bytes left in the store."""
        return sum(stage.stored for stage in self.stages)
