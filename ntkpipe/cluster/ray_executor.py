"""Runs stateless tasks on Ray, with a bounded number of running tasks, retries, and second copies of slow tasks."""

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

# Losses of whole nodes have a higher limit, because a task may lose many nodes on preemptible machines.
_NODE_LOST = (rx.NodeDiedError, rx.LocalRayletDiedError)
_NODE_LOSSES = 20

# A task gets a second copy if it runs longer than this multiple of the median, and at least this many seconds.
_STRAGGLER = 3.0
_STRAGGLER_SECONDS = 2.0
_DURATIONS = 64


@dataclass
class _Flight:
    """A running task: its live copies, its number of losses, and its start."""

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
        capacity: number of tasks that can currently run at the same time.
        demand: resources that a task claims on its node.
        retries: number of times that a task (or a pool's call) is repeated after its worker was lost.
        environment: environment variables of the workers of tasks, such as their number of threads.
        pool_environment: environment variables of the workers of pools; None takes `environment`.
        speculate: whether to start second copies of slow tasks.
        probe: probe in the run's store, which every worker must be able to read; None skips this check.
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
        """Number of processes that compute at the same time on the present cluster."""
        return self._capacity.workers()

    def run(self, graph: Iterable[Task]) -> Generator[TaskResult, None, None]:
        """Run the tasks of `graph`; see `Executor.run`.

        At most three tasks per worker are taken from the graph before their results are read: one runs, one waits in the
        queue of its worker, and one is being sent. So no worker is idle while the driver is busy.
        """
        run = _Run(self._capacity, self._submit, self._retries, self._speculate)
        try:
            yield from run.results(iter(graph))
        finally:
            run.cancel()

    def pool(self, factory: Callable[..., Any], args_per_worker: list[tuple[Any, ...]]) -> RayPool:
        """Start and return one actor per entry; the state of actor k is `factory(*args_per_worker[k])`."""
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
        # A copy should not wait in the queue of the straggler's node.
        invoke = self._invoke.options(scheduling_strategy="SPREAD") if spread else self._invoke
        return invoke.remote(sealed(task.function, task.args), self._probe)


class _Run:
    """The state of one running graph."""

    def __init__(
        self, capacity: FixedCapacity | LiveCapacity, submit: Callable[..., Any], retries: int, speculate: bool
    ) -> None:
        self._capacity = capacity
        self._submit = submit
        self._retries = retries
        self._speculate = speculate
        self._waiting: dict[Hashable, Task] = {}  # taken from the graph, but waiting for other tasks
        self._flights: dict[Hashable, _Flight] = {}
        self._of: dict[Any, Hashable] = {}  # live references
        self._seen: set[Hashable] = set()
        self._done: set[Hashable] = set()
        self._failed: dict[Hashable, BaseException] = {}
        self._durations: deque[float] = deque(maxlen=_DURATIONS)
        self._drained: float | None = None  # start time of the last remaining tasks

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
                # Tasks depend only on earlier ones, so the earliest waiting task is never stuck.
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
        """Cancel running tasks by their references."""
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
        """Start a second copy of every task that runs much longer than the others, if no task waits for a worker."""
        now = time.monotonic()
        if len(self._of) > self._capacity.workers() or not self._durations:
            self._drained = None
            return
        self._drained = self._drained or now
        # A task may have waited in a queue until now; durations include that wait.
        long = max(_STRAGGLER * statistics.median(self._durations), _STRAGGLER_SECONDS)
        for flight in self._flights.values():
            since = max(flight.since, self._drained)
            room = len(self._of) < self._capacity.workers()
            if room and not flight.copies and flight.references and now - since > long:
                flight.copies += 1
                self._launch(flight, spread=True)
                _log.warning(
                    "task %r has been running for %.0f s, others took %.1f s: starting a second copy",
                    flight.task.key,
                    now - flight.since,
                    statistics.median(self._durations),
                )

    def _dispatch(self) -> Iterator[TaskResult]:
        """Submit the tasks that can start now, and yield those that never can, in one pass in the order of the graph."""
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
        """Return the outcome of a task after one of its copies ended, or None if another copy runs or starts now."""
        key = flight.task.key
        error: BaseException
        try:
            return TaskResult(key, value_of(reference), attempts=flight.attempts, speculative=flight.copies)
        except LOST as lost:
            if flight.references:  # the other copy continues
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
        """Restart a task whose worker was lost, or return a result with an error after too many losses."""
        key = flight.task.key
        flight.node_losses += on_node
        flight.losses += not on_node
        if flight.losses <= self._retries and flight.node_losses <= _NODE_LOSSES:
            _log.warning("task %r lost its worker (%s) and is repeated", key, type(lost).__name__)
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
