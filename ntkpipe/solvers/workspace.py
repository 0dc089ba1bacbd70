"""What a solve works with besides its problem: where it runs, what it may take, where it keeps what it has done."""

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
    """What travels together through a solve. By default everything stays in this process, and is gone with it.

    Args:
        executor: of the products and of tasks.
        store: of checkpoints, bases, factors and finished batches of variances: the same call made again with the same store goes on
            from there.
        memory_bytes: for all processes together; None is a share of what is free.
        driver_bytes: of it, what the driver may take; None is all.
        workers: processes that compute; None is as the executor has.
        holder: told to whoever wants the same solve at the same time.
        tell: receives lines for people; see `events.Tell`.
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
        """The workspace while a stage of a call from Python runs in it, whose progress is told as events.

        Args:
            name: of the stage.
            progress: who listens; None leaves a workspace as it is that already tells somebody.
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
        """Memory, as its formulas take it."""
        budget = free_share(free_memory()) if self.memory_bytes is None else self.memory_bytes
        return Room(budget, self.executor.workers if self.workers is None else self.workers, self.driver_bytes)


@contextlib.contextmanager
def exclusive(workspace: Workspace, prefix: str) -> Iterator[Workspace]:
    """The workspace while nobody else adds to what lies under `prefix`: two solves would each undo the other's steps.

    Raises:
        HeldError: if another run is at it; or, while something is told, if it has taken over.
    """
    with workspace.store.lease(prefix, holder=workspace.holder) as lease:

        def tell(line: str, *, force: bool = False, **facts: Any) -> None:
            lease.check()
            workspace.tell(line, force=force, **facts)

        yield replace(workspace, tell=tell)
