"""Stateless tasks and their dependencies, made lazily so that millions of them fit."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any


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
    """Outcome of one task: the function's return value, or the error that it raised last."""

    key: Hashable
    value: Any = None
    error: BaseException | None = None
    attempts: int = 1

    @property
    def ok(self) -> bool:
        """True if the task returned."""
        return self.error is None
