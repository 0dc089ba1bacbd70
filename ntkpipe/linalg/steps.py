"""Steps of a solver that may be interrupted. Finished steps are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np

from ntkpipe.errors import RequeueError
from ntkpipe.linalg.lanes import Lanes

Record = TypeVar("Record")


@runtime_checkable
class Checkpoint(Protocol):
    """The place to which a solver appends its new state since the last checkpoint; see `ntkpipe.linalg.checkpoint`."""

    def append(self, start: int, step: int, arrays: dict[str, np.ndarray]) -> None:
        """Store `arrays`, which the steps after `start` up to and including `step` have added."""
        ...

    def replay(self) -> Iterator[dict[str, np.ndarray]]:
        """The appended entries in order from step 0, up to the first damaged or missing one."""
        ...


@runtime_checkable
class Stepping(Protocol):
    """An iteration that counts its steps."""

    steps: int


def take_step(
    run: Stepping,
    advance: Callable[[], Record],
    on_step: Callable[[Record], None] | None,
    keep: Callable[[], None],
    lanes: Lanes,
) -> None:
    """Take a step of `run`. If a stop is requested or the cluster is lost meanwhile, store the finished steps.

    Args:
        run: the iteration.
        advance: takes the step; `on_step` gets its result.
        on_step: called after the step.
        keep: appends missing steps to the checkpoint; called if the last counted step is complete.
        lanes: threads of this process that share the products of the step.

    Raises:
        RequeueError: raised by `advance` or `on_step`.
    """
    whole = run.steps
    try:
        with lanes.open():
            record = advance()
        whole = run.steps
        if on_step is not None:
            on_step(record)
    except RequeueError:
        if run.steps == whole:
            keep()
        raise
