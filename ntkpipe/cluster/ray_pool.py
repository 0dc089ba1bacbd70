"""Pools of stateful workers as actors, spread over the nodes and replaced when they die."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import ray
from ray import exceptions as rx
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ntkpipe.cluster.capacity import FixedCapacity, LiveCapacity
from ntkpipe.cluster.outcome import LOST, answer, given_up, opened, original, sealed, staying, value_of, wait
from ntkpipe.cluster.store_probe import StoreNotVisibleError, StoreProbe
from ntkpipe.cluster.summing import Place, Summing, joined, slices_for, split
from ntkpipe.tasks.executor import in_order, one_by_one

_log = logging.getLogger(__name__)

# Larger arrays are sent once through the object store, and not once per worker in the call.
_SHARED_BYTES = 100_000

# Keeps an autoscaler from treating a node with an actor as idle.
_FOOTPRINT = 1 << 20


class RayPool:
    """Stateful workers as actors; see `WorkerPool`.

    Actors claim no CPU or GPU from Ray, so that a pool and `run` never wait for each other, and a replacement finds room on
    a full cluster. The pool places them itself: a node gets as many actors as it can run tasks.

    Args:
        factory: creates the state of a worker, in the worker.
        args_per_worker: arguments of the factory, one entry per worker.
        capacity: capacity of the nodes.
        retries: number of times that a call is repeated after its worker was lost.
        environment: environment variables of the workers.
        gpus: number of GPUs per worker.
        probe: probe in the store that workers must be able to read; None skips this check.
        slices: largest number of slices of `total`; 0 sums in the driver; None chooses it from the nodes.
    """

    def __init__(
        self,
        factory: Callable[..., Any],
        args_per_worker: list[tuple[Any, ...]],
        *,
        capacity: FixedCapacity | LiveCapacity,
        retries: int,
        environment: Mapping[str, str],
        gpus: float = 0.0,
        probe: StoreProbe | None = None,
        slices: int | None = None,
    ) -> None:
        self._probe = probe
        self._slices = slices
        self._builds = [sealed(factory, args) for args in args_per_worker]
        self._capacity = capacity
        self._retries = retries
        self._gpus = gpus
        self._holder: Any = ray.remote(num_cpus=0, max_restarts=0, runtime_env={"env_vars": dict(environment)})(_Holder)
        self._places: list[Place] = [None] * len(self._builds)
        self._first = self._together()
        self._actors: list[Any] = [None] * len(self._builds)
        self._closed = False
        try:
            built = {worker: self._start(worker) for worker in range(self.size)}
            self._collect(built, lambda worker: self._actors[worker].ready.remote())
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        """Number of workers."""
        return len(self._builds)

    @property
    def places(self) -> Sequence[Place]:
        """For each worker, its node and its index there; None if Ray placed the workers."""
        return self._places

    def broadcast(self, method: str, *args: Any) -> list[Any]:
        """Call `method(*args)` on every worker at once, and return the results in the order of the workers."""
        self._check_open()
        args = tuple(ray.put(a) if isinstance(a, np.ndarray) and a.nbytes >= _SHARED_BYTES else a for a in args)
        found = self.each(range(self.size), lambda worker: self.remote(worker, "call", 1, method, *args))
        return [found[worker] for worker in range(self.size)]

    def total(self, method: str, *args: Any) -> np.ndarray:
        """Return a sum over workers; see `WorkerPool.total`. Large parts on several nodes are summed on these nodes."""
        self._check_open()
        slices = self._slices
        if slices is None:
            slices = slices_for(self._places, ray.get_runtime_context().get_node_id())
        if not slices:
            return in_order(self.broadcast(method, *args))
        return Summing(self, slices, self._retries).total(method, args)

    def call(self, worker: int, method: str, *args: Any) -> Any:
        """Return `method(*args)` of one worker."""
        self._check_open()
        if not 0 <= worker < self.size:
            raise IndexError(f"worker {worker} of a pool of {self.size}")
        return self.each([worker], lambda worker: self.remote(worker, "call", 1, method, *args))[worker]

    def each(self, workers: Collection[int], call: Callable[[int], Any]) -> dict[int, Any]:
        """Return the values of the references from `call`, by worker, and repeat the call for workers that died."""
        return self._collect({worker: call(worker) for worker in workers}, call)

    def remote(self, worker: int, method: str, returns: int, *args: Any) -> Any:
        """Return the references of the results of a method of the worker's actor."""
        return getattr(self._actors[worker], method).options(num_returns=returns).remote(*args)

    def close(self) -> None:
        """Kill the actors by their handles. This is safe to call twice, and after Ray has stopped."""
        self._closed = True
        actors, self._actors = self._actors, []
        if ray.is_initialized() and not self._capacity.lost:
            for actor in actors:
                if actor is not None:
                    ray.kill(actor)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the pool is closed: make a new one with executor.pool(...)")

    def _start(self, worker: int) -> Any:
        """Start an actor for `worker`, and return the reference of the call that builds its state.

        A method builds the state, not the constructor, so that errors of the factory are ordinary exceptions.
        """
        # A replacement goes to a node that currently has room.
        place = self._places[worker] = self._first.pop(worker) if worker in self._first else self._place()
        options = {}
        if place is not None:
            # The placement is soft, so any other node may be used if this one has left.
            options = {
                "scheduling_strategy": NodeAffinitySchedulingStrategy(place[0], soft=True),
                "memory": _FOOTPRINT,
            }
        actor = self._actors[worker] = self._holder.options(**options).remote()
        return actor.build.remote(self._builds[worker], self._probe, place[1] if place else None, self._gpus)

    def _together(self) -> dict[int, tuple[str, int]]:
        """Return the first places of all workers; workers of the same node are consecutive, which sums need."""
        chosen: list[tuple[str, int]] = []
        for worker in range(self.size):
            place = self._places[worker] = self._place()
            if place is None:
                return {}
            chosen.append(place)
        self._places = [None] * self.size
        order = {node: k for k, node in enumerate(dict.fromkeys(node for node, _ in chosen))}
        return dict(enumerate(sorted(chosen, key=lambda place: (order[place[0]], place[1]))))

    def _place(self) -> tuple[str, int] | None:
        """Return the node with most room for this pool's workers, and the first free place on it."""
        nodes = self._capacity.nodes()
        if not nodes:
            return None
        taken = Counter(place[0] for place in self._places if place is not None)
        node = min(nodes, key=lambda name: (taken[name] / nodes[name], -nodes[name], name))
        used = {place[1] for place in self._places if place is not None and place[0] == node}
        free = next((k for k in range(nodes[node]) if k not in used), taken[node] % nodes[node])
        return node, free

    def _collect(self, pending: dict[int, Any], call: Callable[[int], Any]) -> dict[int, Any]:
        """Return the results of a call by worker.

        Workers that died are replaced, all at once, and the call is repeated on them.

        Args:
            pending: references of the call, or of the creation of the state, by worker.
            call: repeats the call for a worker.
        """
        results: dict[int, Any] = {}
        deaths: Counter[int] = Counter()
        building: set[int] = set()
        of = {reference: worker for worker, reference in pending.items()}
        while of:
            reference = wait(of, self._capacity.tick)
            worker = of.pop(reference)
            try:
                results[worker] = value_of(reference)
                if worker in building:
                    building.discard(worker)
                    of[call(worker)] = worker
                continue
            except (rx.RayTaskError, *LOST) as error:
                cause = original(error)
                if isinstance(cause, StoreNotVisibleError):
                    self._capacity.shun(cause)
                elif isinstance(error, rx.RayTaskError):
                    raise cause from None
                deaths[worker] += 1
                if deaths[worker] > self._retries:
                    raise given_up(f"pool worker {worker}", deaths[worker], error) from error
                _log.warning("pool worker %d died (%s) and is being replaced", worker, type(cause).__name__)
            # The old worker may be unreachable instead of dead, and must not continue to hold memory.
            ray.kill(self._actors[worker])
            self._places[worker] = None
            self._capacity.nodes(fresh=True)
            building.add(worker)
            of[self._start(worker)] = worker
        return results


class _Holder:
    """An actor that calls the methods of a state object. The first returned object, for the driver, is an `answer`."""

    def __init__(self) -> None:
        self._state: Any = None

    def build(self, blob: bytes, probe: StoreProbe | None, place: int | None, gpus: float) -> Any:
        with staying():
            factory, args = opened(blob, probe, place, gpus)
            self._state = factory(*args)
        return answer(None)

    def ready(self) -> Any:
        return answer(None)

    def call(self, method: str, *args: Any) -> Any:
        return answer(getattr(self._state, method)(*args))

    def parts(
        self, method: str, slices: int, least: int, which: int | None, args: tuple[Any, ...], *pieces: np.ndarray
    ) -> Any:
        """Return the part of a sum, in slices that stay on this node; see `Summing`."""
        receipt, *cut = split(getattr(self._state, method)(*joined(args, which, pieces)), slices, least)
        return answer(receipt), *cut

    def keep(self, piece: np.ndarray) -> Any:
        """Store a slice of an argument on this node, from which others fetch it."""
        return answer(None), piece

    def added(self, *parts: np.ndarray) -> Any:
        """Return the sum of the parts."""
        return answer(one_by_one(parts))

    def added_in(self, slices: int, *parts: np.ndarray) -> Any:
        """Return the sum of the parts, in slices that stay on this node."""
        return answer(None), *np.array_split(one_by_one(parts), slices)
