"""An executor of processes on this machine, for notebooks. It starts its own Ray on first use."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

from ntkpipe.cluster.session import local_session
from ntkpipe.config import ClusterConfig
from ntkpipe.tasks.executor import Executor, WorkerPool
from ntkpipe.tasks.graph import Task, TaskResult


class LocalExecutor:
    """An `Executor` of several processes on this machine.

    The first task starts the processes. `close`, the end of a `with` block, or the end of the program stops them. The
    store must be a folder or a bucket, because other processes read and write it. Arguments of tasks are pickled, so a
    kernel function must be at the top level of a module that the processes can import, and not in a notebook cell.

    Args:
        workers: number of processes.
        threads_per_worker: number of threads per process.

    Raises:
        ResourceError: on the first use, if Ray does not start.

    Examples:
        >>> with LocalExecutor(workers=2) as executor:  # doctest: +SKIP
        ...     gram.compute(executor)
    """

    def __init__(self, workers: int = 2, *, threads_per_worker: int = 1) -> None:
        self._config = ClusterConfig(kind="local", workers=workers, threads_per_worker=threads_per_worker)
        self._started = contextlib.ExitStack()
        self._executor: Executor | None = None
        self._end = weakref.finalize(self, self._started.close)

    @property
    def workers(self) -> int:
        """Number of processes."""
        return self._config.worker_count()

    def run(self, graph: Iterable[Task]) -> Generator[TaskResult, None, None]:
        """See `Executor.run`."""
        return self._running().run(graph)

    def pool(self, factory: Callable[..., Any], args_per_worker: list[tuple[Any, ...]]) -> WorkerPool:
        """See `Executor.pool`."""
        return self._running().pool(factory, args_per_worker)

    def publish(self, stage: str, numbers: Mapping[str, float]) -> None:
        """See `Executor.publish`."""
        if self._executor is not None:
            self._executor.publish(stage, numbers)

    def close(self) -> None:
        """Stop the processes. The next use starts them again."""
        self._executor = None
        self._started.close()

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _running(self) -> Executor:
        """The started executor."""
        if self._executor is None:
            self._executor = self._started.enter_context(local_session(self._config))
        return self._executor
