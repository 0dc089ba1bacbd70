"""Stateless tasks on Ray: bounded flight that follows the cluster, retries, and second copies of stragglers."""

from __future__ import annotations

import logging
import statistics
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
from ray import exceptions as rx

from ntkpipe.cluster.capacity import Demand, FixedCapacity, LiveCapacity
from ntkpipe.cluster.metrics import Gauges
from ntkpipe.cluster.outcome import LOST, answer, given_up, opened, original, sealed, staying, value_of, wait
from ntkpipe.cluster.ray_pool import RayPool
from ntkpipe.cluster.store_probe import StoreNotVisibleError, StoreProbe
from ntkpipe.storage.statistics import Report
from ntkpipe.tasks.graph import BlockedError, Task, TaskResult

_log = logging.getLogger(__name__)

# The loss of a whole node says nothing about the task; on machines that are reclaimed it may meet the same one often.
_NODE_LOST = (rx.NodeDiedError, rx.LocalRayletDiedError)
_NODE_LOSSES = 20

# A second copy is started of a task that runs this many times the median, and at least so many seconds.
_STRAGGLER = 3.0
_STRAGGLER_SECONDS = 2.0
_DURATIONS = 64


@dataclass
class _Flight:
    """A task at work: its live copies, how often it was lost, since when it runs."""

    task: Task
    references: list[Any] = field(default_factory=list)
    losses: int = 0
    node_losses: int = 0
    copies: int = 0
    since: float = field(default_factory=time.monotonic)

    @property
    def attempts(self) -> int:
        return 1 + self.losses + self.node_losses


class RayExecutor:
    """Runs tasks on the Ray that this process is connected to; `cluster.session` connects and leaves it.

    Tasks of one environment reuse Ray's worker processes, so compiled functions and cached rows survive between them.

    Args:
        capacity: how many tasks run at the same time, now.
        demand: that a task claims of its node.
        retries: how often a task (or a pool's call) is repeated after its worker was lost.
        environment: variables of the workers of tasks, such as their number of threads.
        pool_environment: of the workers of pools; None is the same.
        speculate: start second copies of stragglers.
        probe: in the run's store, which every worker must see; None is not looked for.
    """

    def __init__(
        self,
        capacity: FixedCapacity | LiveCapacity,
        *,
        demand: Demand | None = None,
        retries: int = 3,
        environment: Mapping[str, str] | None = None,
        pool_environment: Mapping[str, str] | None = None,
        speculate: bool = False,
        probe: StoreProbe | None = None,
    ) -> None:
        demand = demand or Demand()
        self._capacity = capacity
        self._gpus = demand.gpus
        self._retries = retries
        self._speculate = speculate
        self._probe = probe
        self._pool_environment = dict(environment or {}) if pool_environment is None else dict(pool_environment)
        self._pools: list[RayPool] = []
        self._gauges = Gauges()
        # Retries are counted here, where the cause is seen, so that `attempts` is exact. Without max_calls, Ray would end
        # the process after every task that claims a GPU.
        remote = ray.remote(
            max_retries=0, max_calls=0, runtime_env={"env_vars": dict(environment or {})}, **demand.options()
        )
        self._invoke: Any = remote(_invoke)

    @property
    def workers(self) -> int:
        """Number of processes that compute at the same time, as the cluster is now."""
        return self._capacity.workers()

    def run(self, graph: Iterable[Task]) -> Generator[TaskResult, None, None]:
        """Run the tasks of `graph`; see `Executor.run`.

        At most three tasks per worker are taken from the graph before their results are: one that runs, one that
        waits in its worker's queue and one on its way, so that no worker idles while the driver is busy.
        """
        run = _Run(self._capacity, self._submit, self._retries, self._speculate)
        try:
            yield from run.results(iter(graph))
        finally:
            run.cancel()

    def pool(self, factory: Callable[..., Any], args_per_worker: list[tuple[Any, ...]]) -> RayPool:
        """One actor per entry, holding `factory(*args_per_worker[k])`."""
        pool = RayPool(
            factory,
            args_per_worker,
            capacity=self._capacity,
            retries=self._retries,
            environment=self._pool_environment,
            gpus=self._gpus,
            probe=self._probe,
        )
        self._pools.append(pool)
        return pool

    def publish(self, stage: str, numbers: Mapping[str, float]) -> None:
        """See `Executor.publish`: Prometheus metrics through Ray's endpoint."""
        self._gauges.publish(stage, numbers)

    def close(self) -> None:
        """Stop the pools; Ray itself belongs to the session."""
        for pool in self._pools:
            pool.close()
        self._pools = []

    def _submit(self, task: Task, *, spread: bool = False) -> Any:
        # A copy should not land behind the straggler's own node's queue.
        invoke = self._invoke.options(scheduling_strategy="SPREAD") if spread else self._invoke
        return invoke.remote(sealed(task.function, task.args), self._probe)


class _Run:
    """The state of one graph at work."""

    def __init__(
        self, capacity: FixedCapacity | LiveCapacity, submit: Callable[..., Any], retries: int, speculate: bool
    ) -> None:
        self._capacity = capacity
        self._submit = submit
        self._retries = retries
        self._speculate = speculate
        self._waiting: dict[Hashable, Task] = {}  # taken, but something that they come after is not done
        self._flights: dict[Hashable, _Flight] = {}
        self._of: dict[Any, Hashable] = {}  # live references
        self._seen: set[Hashable] = set()
        self._done: set[Hashable] = set()
        self._failed: dict[Hashable, BaseException] = {}
        self._durations: deque[float] = deque(maxlen=_DURATIONS)
        self._drained: float | None = None  # since when every task that is left runs

    def results(self, source: Iterator[Task]) -> Iterator[TaskResult]:
        exhausted = False
        while True:
            while not exhausted and len(self._flights) + len(self._waiting) < 3 * self._capacity.workers():
                task = next(source, None)
                if task is None:
                    exhausted = True
                    break
                if task.key in self._seen:
                    raise ValueError(f"two tasks of one graph have the key {task.key!r}")
                self._waiting[task.key] = task
                yield from self._dispatch()
                self._seen.add(task.key)
            if not self._flights:
                # Tasks come after earlier ones only, so the earliest that waits is never stuck.
                assert exhausted
                assert not self._waiting
                return
            reference = wait(self._of, partial(self._tick, exhausted))
            flight = self._flights[self._of.pop(reference)]
            flight.references.remove(reference)
            result = self._collect(flight, reference)
            del reference
            if result is None:
                continue
            del self._flights[result.key]
            self._drop(flight)
            if result.error is None:
                self._done.add(result.key)
                self._durations.append(time.monotonic() - flight.since)
            else:
                self._failed[result.key] = result.error
            yield result
            yield from self._dispatch()

    def cancel(self) -> None:
        """Give up what is still running, by its references."""
        for flight in self._flights.values():
            self._drop(flight)
        self._flights = {}

    def _drop(self, flight: _Flight) -> None:
        for reference in flight.references:
            self._of.pop(reference, None)
            if ray.is_initialized() and not self._capacity.lost:
                ray.cancel(reference)
        flight.references = []

    def _tick(self, exhausted: bool) -> None:
        self._capacity.tick()
        if self._speculate and exhausted and not self._waiting:
            self._copy_stragglers()

    def _copy_stragglers(self) -> None:
        """A second copy of every task that takes far longer than the others did, once nothing waits for a worker."""
        now = time.monotonic()
        if len(self._of) > self._capacity.workers() or not self._durations:
            self._drained = None
            return
        self._drained = self._drained or now
        # A task may have waited in a queue until a moment ago; durations count that wait too.
        long = max(_STRAGGLER * statistics.median(self._durations), _STRAGGLER_SECONDS)
        for flight in self._flights.values():
            since = max(flight.since, self._drained)
            room = len(self._of) < self._capacity.workers()
            if room and not flight.copies and flight.references and now - since > long:
                flight.copies += 1
                self._launch(flight, spread=True)
                _log.warning(
                    "task %r runs for %.0f s, others took %.1f s: a second copy is started",
                    flight.task.key,
                    now - flight.since,
                    statistics.median(self._durations),
                )

    def _dispatch(self) -> Iterator[TaskResult]:
        """Submit what can start now and yield what never will; in the graph's order, so one pass is enough."""
        for task in list(self._waiting.values()):
            blocked = BlockedError.by(task, self._seen, self._failed)
            if blocked is not None:
                self._failed[task.key] = blocked
                del self._waiting[task.key]
                yield TaskResult(task.key, error=blocked, attempts=0)
            elif all(key in self._done for key in task.after):
                del self._waiting[task.key]
                flight = self._flights[task.key] = _Flight(task)
                self._launch(flight)

    def _launch(self, flight: _Flight, *, spread: bool = False) -> None:
        reference = self._submit(flight.task, spread=spread)
        flight.references.append(reference)
        self._of[reference] = flight.task.key

    def _collect(self, flight: _Flight, reference: Any) -> TaskResult | None:
        """The outcome of a task one of whose copies has ended; None if another is at work, or is started now."""
        key = flight.task.key
        error: BaseException
        try:
            return TaskResult(key, value_of(reference), attempts=flight.attempts, speculative=flight.copies)
        except LOST as lost:
            if flight.references:  # the other copy goes on
                return None
            return self._again(flight, lost, on_node=isinstance(lost, _NODE_LOST))
        except rx.RayError as raised:
            if flight.references:
                return None
            error = original(raised)
            if isinstance(error, StoreNotVisibleError):
                self._capacity.shun(error)
                return self._again(flight, error, on_node=True)
            return TaskResult(key, error=error, attempts=flight.attempts, speculative=flight.copies)

    def _again(self, flight: _Flight, lost: Exception, *, on_node: bool) -> TaskResult | None:
        """Start a task once more whose worker was lost; the outcome if that has been often enough."""
        key = flight.task.key
        flight.node_losses += on_node
        flight.losses += not on_node
        if flight.losses <= self._retries and flight.node_losses <= _NODE_LOSSES:
            _log.warning("task %r lost its worker (%s) and is tried again", key, type(lost).__name__)
            flight.since = time.monotonic()
            self._launch(flight)
            return None
        times = flight.losses + flight.node_losses
        error = given_up(f"the worker of task {key!r}", times, lost)
        return TaskResult(key, error=error, attempts=times, speculative=flight.copies)


def _invoke(blob: bytes, probe: StoreProbe | None) -> tuple[Any, Report | None]:
    with staying():
        function, args = opened(blob, probe)
        return answer(function(*args))
