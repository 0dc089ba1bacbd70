"""Cost of moving the vectors of a product to the workers and back with `cluster/summing.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ntkpipe.planning.machine import Machine
from ntkpipe.tasks.executor import GROUP

# The limits of `cluster/summing.py`: the smallest slice and the largest number of slices. Also the driver's seconds per
# object of a sum, measured with four workers on two busy cores.
_SLICE_BYTES, _MOST_SLICES, _OBJECT_SECONDS = 4 << 20, 8, 7.5e-4


@dataclass(frozen=True)
class AllreduceCost:
    """The cost of one product.

    Args:
        links: seconds of the busiest links, summed over the phases.
        driver: seconds of the driver for objects and answers.
        moved: bytes over all links.
    """

    links: float
    driver: float
    moved: float

    @property
    def seconds(self) -> float:
        """Total seconds."""
        return self.links + self.driver


def at_the_driver(machine: Machine, nbytes: float) -> AllreduceCost:
    """The cost if the driver receives all parts and sends the vectors to every node."""
    moved = nbytes * (machine.all_workers + machine.nodes.value)
    return AllreduceCost(moved / machine.network.value, machine.latency.value, moved)


def allreduce_cost(machine: Machine, nbytes: float) -> AllreduceCost:
    """The cost of moving vectors of b bytes.

    The driver sends slices to some nodes (b), and these send them to all other nodes (N b / R). Parts are added in groups
    of eight, in slices if a group is on several nodes (8 b / cuts). The sums of the groups go to R nodes (W / 8 b / R),
    and R slices go to the driver (b).
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
