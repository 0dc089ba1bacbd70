"""Sums over a pool's workers, made between their nodes, so that the driver receives one array instead of one from each worker.

Workers leave their parts in the object store of their node. In each group of eight workers, which are placed on one node where one
holds them, the parts are added; then the sums of all groups, in R slices of rows, each on another node; the driver puts R slices
together. A group that lies on several nodes adds in slices as well. The array that all workers get goes out in slices, too, one to each
of some nodes, which pass them on. With parts of b bytes the driver sends b and receives b, whatever the number of workers W.

Entries are added in the order of `tasks.executor.in_order` in every way: all give the same bits. A worker that dies is replaced and its
call repeated, like in every call of a pool; what its node held is made again.
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

# An object costs the driver 0.75 ms of its processor (four workers, two busy cores; 128 and 16 objects of a sum compared). Slices are
# not smaller than what a link of 5 GB/s carries in about that time, and there are W r + W R / 8 objects in a sum.
SLICE_BYTES = 4 << 20
MOST_SLICES = 8

Place = tuple[str, int] | None


def slices_for(places: Sequence[Place], here: str) -> int:
    """In how many slices to sum at most: one per node; 0 where at most one part would travel to the driver anyhow.

    Args:
        places: of the workers: their node, and their place on it.
        here: the driver's node.
    """
    nodes = [place[0] for place in places if place is not None]
    if sum(node != here for node in nodes) < 2:
        return 0
    return min(len(set(nodes)), MOST_SLICES)


def hosts(places: Sequence[Place], slices: int) -> list[int]:
    """The workers that look after one slice each: on as many nodes as there are, in the order of the workers."""
    nodes: dict[Any, list[int]] = {}
    for worker, place in enumerate(places):
        nodes.setdefault(place and place[0], []).append(worker)
    # One of each node, then the second of each.
    rounds = sorted((turn, worker) for workers in nodes.values() for turn, worker in enumerate(workers))
    return [rounds[k % len(rounds)][1] for k in range(slices)]


class Workers(Protocol):
    """What a sum needs of a pool."""

    @property
    def size(self) -> int:
        """Number of workers."""
        ...

    @property
    def places(self) -> Sequence[Place]:
        """Of the workers, now."""
        ...

    def each(self, workers: Collection[int], call: Callable[[int], Any]) -> dict[int, Any]:
        """Values by worker of the references that `call(worker)` returns; workers that die are replaced, and called again."""
        ...

    def remote(self, worker: int, method: str, returns: int, *args: Any) -> Any:
        """Call a method of the worker's actor."""
        ...


class Summing:
    """One sum at work.

    Args:
        workers: the pool.
        slices: at most.
        retries: how often what a node held is made again.
    """

    def __init__(self, workers: Workers, slices: int, retries: int) -> None:
        self._workers, self._slices, self._retries = workers, slices, retries
        self._groups = groups(workers.size)
        # Into which the parts are cut for the sums of groups: as many as there are nodes in one.
        nodes = [{place and place[0] for place in workers.places[group.start : group.stop]} for group in self._groups]
        self._cuts = min(slices, max(map(len, nodes)))
        # By worker: references of its slices; where they are; what came at once, because it is small.
        self._parts: dict[int, list[Any]] = {}
        self._where: dict[int, Place] = {}
        self._small: dict[int, np.ndarray] = {}
        self._nbytes = 0

    def total(self, method: str, args: tuple[Any, ...]) -> np.ndarray:
        """The sum of `method(*args)` over the workers; the largest array among `args` travels in slices."""
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
        """The parts that are not there."""
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
        """References of an array's slices, each on another node; of the whole, here, if it is small or nodes are few."""
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
        """Members of a group that add one slice each, counted from its first."""
        return hosts(self._workers.places[group.start : group.stop], cuts)

    def _at_hosts(self, items: range, host: Sequence[int], call: Callable[[int, int], Any]) -> dict[int, Any]:
        """Values of `call(item, worker)` by item, each of which has its host; a host does one at a time."""
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
        """What was on nodes that are gone is made again, and what cannot be found; all of it if that says nothing."""
        alive = {node["NodeID"] for node in alive_nodes()}
        gone = {worker for worker, place in self._where.items() if place is not None and place[0] not in alive}
        gone |= {w for w, parts in self._parts.items() if lost.object_ref_hex in {part.hex() for part in parts}}
        _log.warning("parts of a sum were lost with their node (%s) and are made again", type(lost).__name__)
        for worker in gone or set(self._where):
            self._where.pop(worker, None)
            self._parts.pop(worker, None)
            self._small.pop(worker, None)


def _largest(args: Sequence[Any]) -> int | None:
    """Which argument is worth slicing."""
    sizes = [(a.nbytes, k) for k, a in enumerate(args) if isinstance(a, np.ndarray) and a.nbytes >= SLICE_BYTES]
    return max(sizes)[1] if sizes else None


def split(result: np.ndarray, slices: int, least: int) -> tuple[Any, ...]:
    """A part as its worker returns it: a receipt, then `slices` objects, each a slice of at least `least` bytes, or None.

    The receipt is the number of slices, the bytes of the part, and the part itself if it is too small for one.
    """
    count = min(slices, result.nbytes // least, len(result))
    if count < 1:
        return ((0, result.nbytes, result), *[None] * slices)
    return ((count, result.nbytes, None), *np.array_split(result, count), *[None] * (slices - count))


def joined(args: Sequence[Any], which: int | None, pieces: Sequence[np.ndarray]) -> list[Any]:
    """The arguments as the driver gave them."""
    whole = list(args)
    if which is not None:
        whole[which] = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return whole
