"""The executor without other processes: tasks run one after the other in this process."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterable, Mapping
from typing import Any

import numpy as np

from ntkpipe.tasks import stopping
from ntkpipe.tasks.executor import in_order
from ntkpipe.tasks.graph import BlockedError, Task, TaskResult


class SerialPool:
    """A `WorkerPool` whose workers are plain objects in this process."""

    def __init__(self, factory: Callable[..., Any], args_per_worker: list[tuple[Any, ...]]) -> None:
        self._states = [factory(*args) for args in args_per_worker]
        self._size = len(self._states)

    @property
    def size(self) -> int:
        """Number of workers."""
        return self._size

    def broadcast(self, method: str, *args: Any) -> list[Any]:
        """Call `method(*args)` on every worker, one after the other; results in the order of the workers."""
        return [self.call(worker, method, *args) for worker in range(self.size)]

    def total(self, method: str, *args: Any) -> np.ndarray:
        """See `WorkerPool.total`."""
        return in_order(self.broadcast(method, *args))

    def call(self, worker: int, method: str, *args: Any) -> Any:
        """Call `method(*args)` on one worker.

        Raises:
            RuntimeError: if the pool is closed.
            IndexError: if there is no such worker.
        """
        if not self._states and self._size:
            raise RuntimeError("the pool is closed: make a new one with executor.pool(...)")
        if not 0 <= worker < self._size:
            raise IndexError(f"worker {worker} of a pool of {self._size}")
        stopping.check()
        return getattr(self._states[worker], method)(*args)

    def close(self) -> None:
        """Free the states of the workers. Safe to call twice."""
        self._states = []


class SerialExecutor:
    """An `Executor` that runs each task in this process when its result is requested.

    Args:
        workers: the number that `workers` reports. It serves to test code for several workers without other processes;
            tasks still run one at a time.

    Raises:
        ValueError: if `workers` is below 1.
    """

    def __init__(self, workers: int = 1) -> None:
        if workers < 1:
            raise ValueError(f"workers={workers} must be at least 1")
        self._workers = workers

    @property
    def workers(self) -> int:
        """The reported number of workers."""
        return self._workers

    def run(self, graph: Iterable[Task]) -> Generator[TaskResult, None, None]:
        """Run the tasks in the order of the graph, one per requested result; see `Executor.run`.

        Raises:
            ValueError: if two tasks have the same key.
        """
        failed: dict[Hashable, BaseException] = {}
        seen: set[Hashable] = set()
        for task in graph:
            stopping.check()
            if task.key in seen:
                raise ValueError(f"two tasks of one graph have the key {task.key!r}")
            blocked = BlockedError.by(task, seen, failed)
            if blocked is not None:
                failed[task.key] = blocked
                result = TaskResult(task.key, error=blocked, attempts=0)
            else:
                try:
                    result = TaskResult(task.key, task.function(*task.args))
                except Exception as error:
                    failed[task.key] = error
                    result = TaskResult(task.key, error=error)
            seen.add(task.key)
            yield result

    def pool(self, factory: Callable[..., Any], args_per_worker: list[tuple[Any, ...]]) -> SerialPool:
        """Create one state per entry: `factory(*args_per_worker[k])`."""
        return SerialPool(factory, args_per_worker)

    def publish(self, stage: str, numbers: Mapping[str, float]) -> None:
        """Do nothing, because this process has no metrics."""

    def close(self) -> None:
        """Do nothing."""
