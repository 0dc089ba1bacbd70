"""Stateless tasks and their dependencies, made lazily so that millions of them fit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from ntkpipe.errors import NtkpipeError, ResourceError


@dataclass(frozen=True, slots=True)
class Task:
    """One call of a module-level function; running it twice is always safe.

    Args:
        key: unique in its graph; names the task in results, logs and errors.
        function: importable from `ntkpipe` (workers import it by name).
        args: small values: addresses and paths, never matrices.
        after: keys of tasks that must have finished; they come earlier in the graph's order.
    """

    key: Hashable
    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    after: tuple[Hashable, ...] = ()


@dataclass(frozen=True, slots=True)
class TaskResult:
    """Outcome of one task: the function's return value, or the error that it raised last.

    Args:
        key: of the task.
        value: that it returned.
        error: that it raised.
        attempts: how often it was started, each time because the worker before was lost; 0 if it was not run.
        speculative: second copies that were started because it took long.
    """

    key: Hashable
    value: Any = None
    error: BaseException | None = None
    attempts: int = 1
    speculative: int = 0

    @property
    def ok(self) -> bool:
        """True if the task returned."""
        return self.error is None


class BlockedError(NtkpipeError, RuntimeError):
    """A task that was not run because one that it comes after failed, or is not earlier in the graph."""

    @classmethod
    def by(
        cls, task: Task, seen: Collection[Hashable], failed: Mapping[Hashable, BaseException]
    ) -> BlockedError | None:
        """The reason why `task` cannot run: one that it comes after has `failed` or is not `seen`; None if it can."""
        for key in task.after:
            if key in failed:
                return cls(f"task {task.key!r} was not run: it comes after {key!r}, which failed ({failed[key]})")
            if key not in seen:
                return cls(f"task {task.key!r} was not run: it comes after {key!r}, which is not earlier in the graph")
        return None


class LostWorkerError(ResourceError):
    """A task or call whose workers died again and again: nearly always for lack of memory."""
