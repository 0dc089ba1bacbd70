"""Sums over the workers of a pool, computed on their nodes.

The driver receives one array instead of one per worker. Workers keep their parts in the object store of their node. The
parts are first added within each group of eight workers, which are on the same node if possible. Then the sums of all
groups are added in R slices of rows, each on another node, and the driver joins the R slices. A group on several nodes
also adds in slices. The array that all workers need is sent in slices to some nodes, which pass them on. With parts of
b bytes the driver sends b and receives b bytes, for any number W of workers.

Entries are always added in the order of `tasks.executor.in_order`, so that all ways give the same bits. A worker that dies
is replaced and its call is repeated, as in every call of a pool; lost parts on its node are recomputed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import numpy as np
import ray
from ray import exceptions as rx

from ntkpipe.cluster.capacity import alive_nodes
from ntkpipe.cluster.outcome import given_up
from ntkpipe.tasks.executor import groups, in_order

_log = logging.getLogger(__name__)

# An object takes 0.75 ms of the driver's processor (four workers, two busy cores; sums with 128 and 16 objects compared). A
# slice is at least as large as the data that a link of 5 GB/s carries in this time. A sum has W r + W R / 8 objects.
SLICE_BYTES = 4 << 20
MOST_SLICES = 8

Place = tuple[str, int] | None


def slices_for(places: Sequence[Place], here: str) -> int:
    """Return the largest number of slices of a sum: one per node, or 0 if at most one part is sent to the driver.

    Args:
        places: for each worker, its node and its index there.
        here: the node of the driver.
    """
    nodes = [place[0] for place in places if place is not None]
    if sum(node != here for node in nodes) < 2:
        return 0
    return min(len(set(nodes)), MOST_SLICES)


def hosts(places: Sequence[Place], slices: int) -> list[int]:
    """Return the workers that add one slice each, on as many nodes as possible, in the order of the workers."""
    nodes: dict[Any, list[int]] = {}
    for worker, place in enumerate(places):
        nodes.setdefault(place and place[0], []).append(worker)
    # Take the first worker of each node, then the second of each.
    rounds = sorted((turn, worker) for workers in nodes.values() for turn, worker in enumerate(workers))
    return [rounds[k % len(rounds)][1] for k in range(slices)]


class Workers(Protocol):
    """The methods of a pool that a sum uses."""

    @property
    def size(self) -> int:
        """Number of workers."""
        ...

    @property
    def places(self) -> Sequence[Place]:
        """The current places of the workers."""
        ...

    def each(self, workers: Collection[int], call: Callable[[int], Any]) -> dict[int, Any]:
        """Return the values of the references from `call(worker)`, by worker.

        Workers that die are replaced and called again.
        """
        ...

    def remote(self, worker: int, method: str, returns: int, *args: Any) -> Any:
        """Call a method of the worker's actor."""
        ...


class Summing:
    """One running sum.

    Args:
        workers: the pool.
        slices: largest number of slices.
        retries: number of times that lost parts of a node are recomputed.
    """

    def __init__(self, workers: Workers, slices: int, retries: int) -> None:
        self._workers, self._slices, self._retries = workers, slices, retries
        self._groups = groups(workers.size)
        # Parts have as many slices for the sum of a group as the group has nodes.
        nodes = [{place and place[0] for place in workers.places[group.start : group.stop]} for group in self._groups]
        self._cuts = min(slices, max(map(len, nodes)))
        # For each worker: references of its slices, their places, and small parts that arrived at once.
        self._parts: dict[int, list[Any]] = {}
        self._where: dict[int, Place] = {}
        self._small: dict[int, np.ndarray] = {}
        self._nbytes = 0

    def total(self, method: str, args: tuple[Any, ...]) -> np.ndarray:
        """Return the sum of `method(*args)` over the workers; the largest array in `args` is sent in slices."""
        for losses in range(self._retries + 1):
            try:
                self._make(method, args)
                return self._added()
            except rx.ObjectLostError as lost:
                if losses == self._retries:
                    raise given_up("a node that held parts of a sum", losses + 1, lost) from lost
                self._forget(lost)
        raise AssertionError

    def _make(self, method: str, args: tuple[Any, ...]) -> None:
        """Compute the missing parts."""
        missing = [worker for worker in range(self._workers.size) if worker not in self._where]
        which = _largest(args)
        pieces = () if which is None else self._spread(args[which])
        rest = tuple(None if k == which else a for k, a in enumerate(args))
        made: dict[int, list[Any]] = {}

        def call(worker: int) -> Any:
            receipt, *made[worker] = self._workers.remote(
                worker, "parts", self._cuts + 1, method, self._cuts, SLICE_BYTES, which, rest, *pieces
            )
            return receipt

        for worker, (count, nbytes, small) in self._workers.each(missing, call).items():
            self._nbytes = nbytes
            self._where[worker] = self._workers.places[worker]
            self._parts[worker] = made[worker][:count]
            if small is not None:
                self._small[worker] = small

    def _spread(self, array: np.ndarray) -> list[Any]:
        """Return references of an array's slices on different nodes, or of the whole array if slices do not pay."""
        count = min(self._slices, array.nbytes // SLICE_BYTES)
        if count < 3:
            return [ray.put(array)]
        pieces = np.array_split(array, count)
        kept: dict[int, Any] = {}

        def keep(k: int, worker: int) -> Any:
            receipt, kept[k] = self._workers.remote(worker, "keep", 2, pieces[k])
            return receipt

        self._at_hosts(range(count), hosts(self._workers.places, count), keep)
        return [kept[k] for k in range(count)]

    def _added(self) -> np.ndarray:
        if self._small:
            return in_order([self._small[worker] for worker in range(self._workers.size)])
        cuts = len(self._parts[0])
        if len(self._groups) == 1:
            host = hosts(self._workers.places, cuts)

            def last(s: int, worker: int) -> Any:
                return self._workers.remote(worker, "added", 1, *[self._parts[w][s] for w in self._groups[0]])

            found = self._at_hosts(range(cuts), host, last)
            return np.concatenate([found[s] for s in range(cuts)])
        finer = max(1, min(self._slices, self._nbytes // SLICE_BYTES) // cuts)
        sums: dict[int, list[Any]] = {}

        def first(k: int, worker: int) -> Any:
            group, s = self._groups[k // cuts], k % cuts
            parts = [self._parts[w][s] for w in group]
            receipt, *sums[k] = self._workers.remote(worker, "added_in", finer + 1, finer, *parts)
            return receipt

        self._at_hosts(
            range(len(self._groups) * cuts),
            [group.start + k for group in self._groups for k in self._within(group, cuts)],
            first,
        )

        def then(k: int, worker: int) -> Any:
            s, t = divmod(k, finer)
            return self._workers.remote(worker, "added", 1, *[sums[g * cuts + s][t] for g in range(len(self._groups))])

        found = self._at_hosts(range(cuts * finer), hosts(self._workers.places, cuts * finer), then)
        return np.concatenate([found[k] for k in range(cuts * finer)])

    def _within(self, group: range, cuts: int) -> list[int]:
        """Return the members of a group that add one slice each, as indices within the group."""
        return hosts(self._workers.places[group.start : group.stop], cuts)

    def _at_hosts(self, items: range, host: Sequence[int], call: Callable[[int, int], Any]) -> dict[int, Any]:
        """Return the values of `call(item, worker)` by item; each item has a host, which handles one item at a time."""
        found: dict[int, Any] = {}
        left = list(items)
        while left:
            turn: dict[int, int] = {}
            for item in left:
                turn.setdefault(host[item], item)
            made = self._workers.each(turn, lambda worker, turn=turn: call(turn[worker], worker))
            found |= {turn[worker]: value for worker, value in made.items()}
            left = [item for item in left if item not in found]
        return found

    def _forget(self, lost: rx.ObjectLostError) -> None:
        """Drop missing parts and parts on lost nodes, so that they are recomputed; drop all parts if none is found."""
        alive = {node["NodeID"] for node in alive_nodes()}
        gone = {worker for worker, place in self._where.items() if place is not None and place[0] not in alive}
        gone |= {w for w, parts in self._parts.items() if lost.object_ref_hex in {part.hex() for part in parts}}
        _log.warning("parts of a sum were lost with their node (%s) and are recomputed", type(lost).__name__)
        for worker in gone or set(self._where):
            self._where.pop(worker, None)
            self._parts.pop(worker, None)
            self._small.pop(worker, None)


def _largest(args: Sequence[Any]) -> int | None:
    """Return the index of the argument to send in slices, or None."""
    sizes = [(a.nbytes, k) for k, a in enumerate(args) if isinstance(a, np.ndarray) and a.nbytes >= SLICE_BYTES]
    return max(sizes)[1] if sizes else None


def split(result: np.ndarray, slices: int, least: int) -> tuple[Any, ...]:
    """Return a part as objects of its worker: a receipt, then `slices` slices of at least `least` bytes or None.

    The receipt contains the number of slices, the bytes of the part, and the part if it is too small for slices.
    """
    count = min(slices, result.nbytes // least, len(result))
    if count < 1:
        return ((0, result.nbytes, result), *[None] * slices)
    return ((count, result.nbytes, None), *np.array_split(result, count), *[None] * (slices - count))


def joined(args: Sequence[Any], which: int | None, pieces: Sequence[np.ndarray]) -> list[Any]:
    """Return the arguments, with the sliced one joined from its slices."""
    whole = list(args)
    if which is not None:
        whole[which] = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return whole
