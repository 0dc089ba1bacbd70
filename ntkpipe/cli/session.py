"""One process's executors: made when first asked for, shared by the jobs of a sweep, closed at the end."""

from __future__ import annotations

import contextlib
from types import TracebackType

from ntkpipe.cluster.session import open_executor
from ntkpipe.config import ClusterConfig
from ntkpipe.tasks.executor import Executor


class Session:
    """Context manager that hands out one executor per cluster configuration."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._executors: dict[ClusterConfig, Executor] = {}

    def executor(self, config: ClusterConfig) -> Executor:
        """The executor for `config`, started on the first call."""
        if config not in self._executors:
            self._executors[config] = self._stack.enter_context(open_executor(config))
        return self._executors[config]

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
