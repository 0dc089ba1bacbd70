"""Stateless tasks and their dependencies. Graphs are lazy, so that millions of tasks fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from ntkpipe.errors import NtkpipeError, ResourceError


@dataclass(frozen=True, slots=True)
class Task:
    """One call of a module-level function; running it twice is always safe.

    Args:
        key: unique in its graph; identifies the task in results, logs and errors.
        function: a module-level function, which workers import by name.
        args: small values, such as addresses and paths, but no matrices.
        after: keys of tasks that must finish first; they come earlier in the graph.
    """

    key: Hashable
    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    after: tuple[Hashable, ...] = ()


@dataclass(frozen=True, slots=True)
class TaskResult:
    """Outcome of one task: its return value, or its last error.

    Args:
        key: of the task.
        value: returned by the function.
        error: raised by the function; None if it returned.
        attempts: number of starts; each one after the first replaces a lost worker. 0 if the task was not run.
        speculative: number of second copies that were started because the task was slow.
    """

    key: Hashable
    value: Any = None
    error: BaseException | None = None
    attempts: int = 1
    speculative: int = 0

    @property
    def ok(self) -> bool:
        """Whether the task returned."""
        return self.error is None


class BlockedError(NtkpipeError, RuntimeError):
    """The error of a task that was not run, because a task on which it depends failed or is not earlier in the graph."""

    @classmethod
    def by(
        cls, task: Task, seen: Collection[Hashable], failed: Mapping[Hashable, BaseException]
    ) -> BlockedError | None:
        """The error if a task on which `task` depends has `failed` or was not `seen`; None if `task` can run."""
        for key in task.after:
            if key in failed:
                return cls(f"task {task.key!r} was not run because it depends on {key!r}, which failed ({failed[key]})")
            if key not in seen:
                return cls(
                    f"task {task.key!r} was not run because it depends on {key!r}, which is not earlier in the graph"
                )
        return None


class LostWorkerError(ResourceError):
    """The error of a task or call whose workers died repeatedly, usually because memory was short."""
