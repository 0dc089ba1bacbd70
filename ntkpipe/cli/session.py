"""The executors of one process, which are made on first use, shared by the jobs of a sweep and closed at the end."""

from __future__ import annotations

import contextlib
import dataclasses
from types import TracebackType

from ntkpipe.cluster import supervisor
from ntkpipe.cluster.session import open_executor
from ntkpipe.config import ClusterConfig, RunConfig
from ntkpipe.storage.store import open_store
from ntkpipe.tasks.executor import Executor


class Session:
    """Context manager that provides one executor per cluster configuration and store."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._executors: dict[tuple[ClusterConfig, str], Executor] = {}

    def executor(self, config: RunConfig) -> Executor:
        """Return the executor for a run; the first call starts it."""
        cluster = config.cluster
        # Settings that `complete_config` adds do not change the cluster.
        plain = dataclasses.replace(cluster, workers=None, memory_gib=None) if cluster.kind == "ray" else cluster
        key = (plain, config.store.url if cluster.kind == "ray" else "")
        if key not in self._executors:
            if cluster.kind == "ray" and not self._executors:
                supervisor.fork_driver()
            self._executors[key] = self._stack.enter_context(open_executor(plain, open_store(config.store.url)))
        return self._executors[key]

    def join_cluster(self, config: RunConfig) -> RunConfig:
        """Join the cluster, and return the configuration with the numbers of the cluster that plans need.

        Configurations of other kinds are returned unchanged.
        """
        if config.cluster.kind != "ray":
            return config
        executor = self.executor(config)
        from ntkpipe.cluster.joined import JoinedExecutor

        assert isinstance(executor, JoinedExecutor)
        return dataclasses.replace(config, cluster=executor.complete_config())

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
