"""Where tasks run: the protocol that every executor keeps."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ntkpipe.tasks.graph import Task, TaskResult


@runtime_checkable
class WorkerPool(Protocol):
    """Stateful workers that hold tiles between passes. A worker's state is made by its factory, in the worker.

    `call` and `broadcast` invoke a method of that state object. A worker that dies is replaced, its state made
    anew by the factory, and the call repeated; an exception raised by the method itself is raised here, unchanged.
    Arrays in arguments and results may be shared with other processes: treat them as read-only.
    """

    @property
    def size(self) -> int:
        """Number of workers."""
        ...

    def broadcast(self, method: str, *args: Any) -> list[Any]:
        """Call `method(*args)` on every worker at once; results in the order of the workers, always."""
        ...

    def total(self, method: str, *args: Any) -> np.ndarray:
        """The sum of the arrays that `method(*args)` returns on every worker, added entry by entry in the order of `in_order`.

        It is the same in every bit wherever it is made, and is not shared: the caller may write to it.
        """
        ...

    def call(self, worker: int, method: str, *args: Any) -> Any:
        """Call `method(*args)` on one worker."""
        ...

    def close(self) -> None:
        """Stop the workers and free what they hold. Safe to call twice."""
        ...


@runtime_checkable
class Executor(Protocol):
    """Runs stateless tasks, and offers pools of stateful workers."""

    @property
    def workers(self) -> int:
        """Number of processes that compute at the same time."""
        ...

    def run(self, graph: Iterable[Task]) -> Generator[TaskResult, None, None]:
        """Run every task once its `after` tasks are done; yield results as they finish, in any order.

        The graph is consumed lazily with a bounded number of tasks in flight. A task whose worker was lost is tried
        again; in the end its result carries a `LostWorkerError`. One that raises is not tried again: its result carries
        the error. Tasks after a failed one are not run: their results carry a `BlockedError` that names it, and say
        `attempts=0`. Closing the generator early cancels what has not finished.
        """
        ...

    def pool(self, factory: Callable[..., Any], args_per_worker: list[tuple[Any, ...]]) -> WorkerPool:
        """Start one stateful worker per entry; worker `k` holds `factory(*args_per_worker[k])`."""
        ...

    def publish(self, stage: str, numbers: Mapping[str, float]) -> None:
        """Show how a stage goes where this kind of executor's metrics are looked at; never fails, and may do nothing."""
        ...

    def close(self) -> None:
        """Stop what this executor started, by id, and nothing else."""
        ...


def values_of(executor: Executor, tasks: Iterable[Task]) -> Iterator[tuple[Any, Any]]:
    """Keys and values of tasks as they finish, in any order; the first that fails ends it, and cancels the others."""
    results = executor.run(tasks)
    try:
        for result in results:
            if result.error is not None:
                raise result.error
            yield result.key, result.value
    finally:
        results.close()


GROUP = 8
"""Workers whose arrays are added first in a sum: as many as there are GPUs in a node."""


def groups(count: int) -> list[range]:
    """Workers of each group."""
    return [range(low, min(low + GROUP, count)) for low in range(0, count, GROUP)]


def one_by_one(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Sum of arrays of one shape, entry by entry in their order; a new array."""
    total = np.array(parts[0])  # a copy: what an executor returns may be read-only shared memory
    for part in parts[1:]:
        total += part
    return total


def in_order(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Sum of all workers' arrays as every pool makes it: of each group in its order, then of the groups."""
    total = one_by_one([parts[worker] for worker in groups(len(parts))[0]])
    for group in groups(len(parts))[1:]:
        total += one_by_one([parts[worker] for worker in group])
    return total
