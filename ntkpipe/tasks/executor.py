"""The protocol of executors, which run tasks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ntkpipe.tasks.graph import Task, TaskResult


@runtime_checkable
class WorkerPool(Protocol):
    """Stateful workers that hold tiles between passes. A factory creates the state of a worker in its process.

    `call` and `broadcast` invoke a method of the state. If a worker dies, another one replaces it, the factory creates
    its state again, and the call is repeated. An exception of the method is raised in the caller. Arrays in arguments and
    results may be shared with other processes: treat them as read-only.
    """

    @property
    def size(self) -> int:
        """Number of workers."""
        ...

    def broadcast(self, method: str, *args: Any) -> list[Any]:
        """Call `method(*args)` on all workers in parallel; the results are in the order of the workers."""
        ...

    def total(self, method: str, *args: Any) -> np.ndarray:
        """The sum of the arrays that `method(*args)` returns on every worker, added in the order of `in_order`.

        It has the same bits for every pool, and it is not shared: the caller may write to it.
        """
        ...

    def call(self, worker: int, method: str, *args: Any) -> Any:
        """Call `method(*args)` on one worker."""
        ...

    def close(self) -> None:
        """Stop the workers and free their memory. Safe to call twice."""
        ...


@runtime_checkable
class Executor(Protocol):
    """Runs stateless tasks, and creates pools of stateful workers."""

    @property
    def workers(self) -> int:
        """Number of processes that compute at the same time."""
        ...

    def run(self, graph: Iterable[Task]) -> Generator[TaskResult, None, None]:
        """Run every task after its `after` tasks have finished; yield results as they arrive, in any order.

        The graph is consumed lazily with a bounded number of tasks in flight. A task whose worker was lost is repeated;
        after too many losses its result has a `LostWorkerError`. A task that raises is not repeated; its result has the
        error. Tasks that depend on a failed task are not run; their results have a `BlockedError` with its key, and
        `attempts=0`. Closing the generator cancels unfinished tasks.
        """
        ...

    def pool(self, factory: Callable[..., Any], args_per_worker: list[tuple[Any, ...]]) -> WorkerPool:
        """Start one stateful worker per entry; the state of worker k is `factory(*args_per_worker[k])`."""
        ...

    def publish(self, stage: str, numbers: Mapping[str, float]) -> None:
        """Publish the progress of a stage in the metrics of this executor. It never fails, and may do nothing."""
        ...

    def close(self) -> None:
        """Stop the processes that this executor started, and no others."""
        ...


def values_of(executor: Executor, tasks: Iterable[Task]) -> Iterator[tuple[Any, Any]]:
    """Keys and values of tasks as they finish, in any order. The first failure is raised and cancels the other tasks."""
    results = executor.run(tasks)
    try:
        for result in results:
            if result.error is not None:
                raise result.error
            yield result.key, result.value
    finally:
        results.close()


GROUP = 8
"""Number of workers in a group, whose arrays are added first: a usual number of GPUs per node."""


def groups(count: int) -> list[range]:
    """The workers of each group, for `count` workers."""
    return [range(low, min(low + GROUP, count)) for low in range(0, count, GROUP)]


def one_by_one(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The sum of arrays in their order, as a new array."""
    total = np.array(parts[0])  # a copy, because results of an executor may be read-only shared memory
    for part in parts[1:]:
        total += part
    return total


def in_order(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The sum of the arrays of all workers: first within each group, then over the groups. All pools use this order."""
    total = one_by_one([parts[worker] for worker in groups(len(parts))[0]])
    for group in groups(len(parts))[1:]:
        total += one_by_one([parts[worker] for worker in group])
    return total
