"""The environment of a solve: its executor, its memory, and the store of its results."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ntkpipe.events.event import Event, Kind, Tell, stage, tell_nobody
from ntkpipe.events.lines import Progress, listener_of
from ntkpipe.limits import free_memory
from ntkpipe.planning.memory import Room, free_share
from ntkpipe.storage.memory import MemoryStore
from ntkpipe.storage.protocol import ObjectStore
from ntkpipe.tasks.executor import Executor
from ntkpipe.tasks.serial import SerialExecutor


def _memory_store() -> ObjectStore:
    return MemoryStore(f"solves-{uuid.uuid4().hex}")


@dataclass(frozen=True)
class Workspace:
    """The environment of a solve. By default everything stays in the memory of this process.

    Args:
        executor: runs products and tasks.
        store: stores checkpoints, bases, factors and finished batches of variances. Repeating a call with the same store
            continues from them.
        memory_bytes: memory of all processes together; None is a share of the free memory.
        driver_bytes: part of `memory_bytes` for the driver; None is all.
        workers: number of processes that compute; None takes the number of the executor.
        holder: description of this process for others that want the same solve.
        tell: receives lines of progress; see `events.Tell`.
    """

    executor: Executor = field(default_factory=SerialExecutor)
    store: ObjectStore = field(default_factory=_memory_store)
    memory_bytes: int | None = None
    driver_bytes: int | None = None
    workers: int | None = None
    holder: str = "ntkpipe"
    tell: Tell = tell_nobody

    @contextlib.contextmanager
    def telling(self, name: str, progress: Progress) -> Iterator[Workspace]:
        """Context manager: the workspace for a stage of a call from Python, which reports its progress as events.

        Args:
            name: name of the stage.
            progress: the listener; None keeps the listener of a workspace that has one.
        """
        if progress is None and self.tell is not tell_nobody:
            yield self
            return
        emit, began = listener_of(progress), time.monotonic()
        with stage(emit, name) as tell:
            yield replace(self, tell=tell)
        emit(Event(Kind.STAGE_DONE, name, elapsed=time.monotonic() - began))

    @property
    def room(self) -> Room:
        """The memory of all processes, for the formulas of `planning.memory`."""
        budget = free_share(free_memory()) if self.memory_bytes is None else self.memory_bytes
        return Room(budget, self.executor.workers if self.workers is None else self.workers, self.driver_bytes)


@contextlib.contextmanager
def exclusive(workspace: Workspace, prefix: str) -> Iterator[Workspace]:
    """Context manager: the workspace with a lease on `prefix`, because two solves would overwrite each other's steps.

    Raises:
        HeldError: if another run holds the lease, or takes it over later (on the next line of progress).
    """
    with workspace.store.lease(prefix, holder=workspace.holder) as lease:

        def tell(line: str, *, force: bool = False, **facts: Any) -> None:
            lease.check()
            workspace.tell(line, force=force, **facts)

        yield replace(workspace, tell=tell)
