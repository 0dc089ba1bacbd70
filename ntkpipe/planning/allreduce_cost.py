"""What a product's vectors cost on their way to the workers and back, as `cluster/summing.py` moves them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ntkpipe.planning.machine import Machine
from ntkpipe.tasks.executor import GROUP

# As there: slices are not smaller, and not more; and what an object of a sum costs the driver, measured with four workers on two
# busy cores.
_SLICE_BYTES, _MOST_SLICES, _OBJECT_SECONDS = 4 << 20, 8, 7.5e-4


@dataclass(frozen=True)
class AllreduceCost:
    """One product's.

    Args:
        links: seconds of the busiest links, one phase after the other.
        driver: seconds of the driver for objects and answers.
        moved: bytes over all links.
    """

    links: float
    driver: float
    moved: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.links + self.driver


def at_the_driver(machine: Machine, nbytes: float) -> AllreduceCost:
    """All parts travel to the driver, and the vectors from it to every node."""
    moved = nbytes * (machine.all_workers + machine.nodes.value)
    return AllreduceCost(moved / machine.network.value, machine.latency.value, moved)


def allreduce_cost(machine: Machine, nbytes: float) -> AllreduceCost:
    """Of vectors of so many bytes, in the way that is taken for them.

    Out go slices to some nodes (b), which send them to all others (N b / R); parts are added in groups of eight, in slices too
    if these lie on several nodes (8 b / cuts); sums of groups go to R nodes (W / 8 b / R), and R slices to the driver (b).
    """
    nodes, workers = int(machine.nodes.value), machine.all_workers
    slices = min(nodes, _MOST_SLICES, int(nbytes // _SLICE_BYTES))
    if nodes == 1 or slices < 1:
        return at_the_driver(machine, nbytes)
    groups = math.ceil(workers / GROUP)
    cuts = min(slices, math.ceil(min(GROUP, workers) / int(machine.workers.value)))
    out = nbytes * (1 + nodes / slices) if slices >= 3 else nbytes * nodes
    within = 0.0 if cuts == 1 and nodes < workers else nbytes * min(GROUP, workers) / cuts
    between = nbytes * groups / slices if groups > 1 else 0.0
    objects = workers * cuts + slices + (groups * slices if groups > 1 else 0)
    moved = nbytes * ((nodes + 1) + (workers if within else 0) + (groups if groups > 1 else 0) + 1)
    return AllreduceCost(
        (out + within + between + nbytes) / machine.network.value,
        4 * machine.latency.value + objects * _OBJECT_SECONDS,
        moved,
    )
