"""Steps of a solver that somebody may stop: what they have made is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np

from ntkpipe.errors import RequeueError
from ntkpipe.linalg.lanes import Lanes

Record = TypeVar("Record")


@runtime_checkable
class Checkpoint(Protocol):
    """Where the solver appends what is new since the last checkpoint; see `ntkpipe.linalg.checkpoint`."""

    def append(self, start: int, step: int, arrays: dict[str, np.ndarray]) -> None:
        """Keep `arrays`, what the steps after `start` up to and including `step` have added."""
        ...

    def replay(self) -> Iterator[dict[str, np.ndarray]]:
        """What was appended, in order from step 0, up to the first damaged or missing entry."""
        ...


@runtime_checkable
class Stepping(Protocol):
    """What goes on by steps, and counts them."""

    steps: int


def take_step(
    run: Stepping,
    advance: Callable[[], Record],
    on_step: Callable[[Record], None] | None,
    keep: Callable[[], None],
    lanes: Lanes,
) -> None:
    """Take a step of `run`, and keep what there is where it is told to stop meanwhile, or the cluster is gone.

    Args:
        run: whose steps are counted.
        advance: takes the step; what it returns is for `on_step`.
        on_step: called after the step.
        keep: appends to the checkpoint what it lacks; called if the last step that was counted is whole.
        lanes: threads of this process that share the step's products.

    Raises:
        RequeueError: that `advance` or `on_step` has raised.
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
