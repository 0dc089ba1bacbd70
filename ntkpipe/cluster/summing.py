"""Sums over a pool's workers, made between their nodes, so that the driver receives one array instead of one from each worker.

The array that all workers get goes out in slices, one to each of R nodes, which pass them on to the others; every worker keeps its
part of the sum in R slices of rows, in the object store of its node; one worker on each of R nodes adds one slice of all parts; the
driver puts R sums together. With W workers, nodes of G workers, and parts of b bytes the driver sends and receives b, and
a node receives 2 b and G W b / (R G) = W b / R: at R nodes as much as its own workers made, however many nodes there are. Every
entry is added in the order of the workers, here as in `in_order`: both ways give the same bits.

A worker that dies is replaced and its call repeated, like in every call of a pool; what its node held is made again.
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
from ntkpipe.tasks.executor import in_order

_log = logging.getLogger(__name__)

# Slices are not smaller: below, messages cost more than what they carry.
SLICE_BYTES = 1 << 20
# W x R objects are made in a sum, and Ray's bookkeeping takes a tenth of a millisecond for each.
MOST_SLICES = 32

Place = tuple[str, int] | None


def slices_for(places: Sequence[Place], here: str) -> int:
    """In how many slices to sum: one per node; 0 where at most one part would travel to the driver anyhow.

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
        # By worker: references of its slices; where they are; what came at once, because it is small.
        self._parts: dict[int, list[Any]] = {}
        self._where: dict[int, Place] = {}
        self._small: dict[int, np.ndarray] = {}

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
                worker, "parts", self._slices + 1, method, self._slices, which, rest, *pieces
            )
            return receipt

        for worker, (count, small) in self._workers.each(missing, call).items():
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
        host = hosts(self._workers.places, count)
        kept: dict[int, Any] = {}
        for turn in range(0, count, len(set(host))):
            # A worker keeps one at a time.
            of = {host[k]: k for k in range(turn, min(turn + len(set(host)), count))}

            def call(worker: int, of: dict[int, int] = of) -> Any:
                receipt, kept[of[worker]] = self._workers.remote(worker, "keep", 2, pieces[of[worker]])
                return receipt

            self._workers.each(of, call)
        return [kept[k] for k in range(count)]

    def _added(self) -> np.ndarray:
        size = self._workers.size
        if self._small:
            return in_order([self._small[worker] for worker in range(size)])
        count = len(self._parts[0])
        host = hosts(self._workers.places, count)
        found: dict[int, np.ndarray] = {}
        for turn in range(0, count, len(set(host))):
            of = {host[k]: k for k in range(turn, min(turn + len(set(host)), count))}

            def call(worker: int, of: dict[int, int] = of) -> Any:
                parts = [self._parts[w][of[worker]] for w in range(size)]
                return self._workers.remote(worker, "added", 1, *parts)

            for worker, value in self._workers.each(of, call).items():
                found[of[worker]] = value
        return np.concatenate([found[k] for k in range(count)])

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


def split(result: np.ndarray, slices: int) -> tuple[Any, ...]:
    """A part as its worker returns it: a receipt of (slices, or the part itself if it is small), then `slices` objects."""
    count = min(slices, result.nbytes // SLICE_BYTES, len(result))
    if count < 1:
        return ((0, result), *[None] * slices)
    return ((count, None), *np.array_split(result, count), *[None] * (slices - count))


def joined(args: Sequence[Any], which: int | None, pieces: Sequence[np.ndarray]) -> list[Any]:
    """The arguments as the driver gave them."""
    whole = list(args)
    if which is not None:
        whole[which] = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return whole
