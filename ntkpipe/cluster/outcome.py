"""What became of a remote call: its value, what user code raised, or a worker that was lost."""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from typing import Any

import ray
from ray import exceptions as rx
from ray.cloudpickle import cloudpickle

from ntkpipe.cluster.store_probe import StoreProbe
from ntkpipe.errors import ResourceError
from ntkpipe.storage.statistics import PROCESS, Report
from ntkpipe.tasks import environment, stopping
from ntkpipe.tasks.graph import LostWorkerError

# The worker, its node or its result is gone, or Ray killed the worker for memory: none says anything about the task.
LOST = (
    rx.WorkerCrashedError,
    rx.NodeDiedError,
    rx.LocalRayletDiedError,
    rx.ActorDiedError,
    rx.ActorUnavailableError,
    rx.ActorUnschedulableError,
    rx.ObjectLostError,
    rx.OutOfMemoryError,
)

# How long a wait for results is at most, before stops and the cluster are looked at again.
TICK_SECONDS = 1.0
# The cluster is looked at every other tick.
_BROKEN = 4


def original(error: Exception) -> BaseException:
    """What user code raised, with the worker's traceback as a note; Ray's own errors as they are."""
    if isinstance(error, rx.RayTaskError) and isinstance(error.cause, BaseException):
        cause = error.cause
        cause.add_note(f"raised in a worker:\n{error}")
        return cause
    return error


def given_up(who: str, times: int, error: Exception) -> LostWorkerError:
    """The error of a worker that died again and again."""
    if isinstance(error, (rx.NodeDiedError, rx.LocalRayletDiedError)):
        return LostWorkerError(
            f"{who} lost its node {times} times ({type(error).__name__}): start the same command again, on nodes that stay"
        )
    if not isinstance(error, rx.OutOfMemoryError):
        # Killed by the system, or by native code of a library that failed: the end of a process does not say which.
        return LostWorkerError(
            f"{who} died {times} times ({type(error).__name__}) and could not say why. Most often its process was killed for "
            "lack of memory: lower cluster.workers, grid.edge or cluster.memory_gib, or on a cluster claim more "
            "cluster.memory_per_task. If memory was free, cluster=serial shows what happens in a process that can be seen."
        )
    return LostWorkerError(
        f"{who} died {times} times, killed by Ray for lack of memory ({type(error).__name__}): "
        "lower cluster.workers, grid.edge or cluster.memory_gib, or on a cluster claim more cluster.memory_per_task"
    )


def wait(references: Collection[Any], tick: Callable[[], None]) -> Any:
    """The first of the references whose call has ended; looks out for stops and for the cluster meanwhile.

    Args:
        references: of the calls; `tick` may add to them.
        tick: called every second.

    Raises:
        RequeueError: if the run was told to stop, or the cluster has lost its head.
    """
    broken = 0
    while True:
        stopping.check()
        tick()
        try:
            ready, _ = ray.wait(list(references), num_returns=1, timeout=TICK_SECONDS)
        except OSError:  # the connection to Ray's process on this node: `tick` looks whether it is there
            broken += 1
            if broken == _BROKEN:
                raise
            time.sleep(TICK_SECONDS)
            continue
        if ready:
            return ready[0]


@contextlib.contextmanager
def staying() -> Iterator[None]:
    """Turn what would end a worker's process into an error that is told: a module that leaves on import is no lack of memory.

    Raises:
        ResourceError: naming the line that would have ended it.
    """
    try:
        yield
    except SystemExit as left:
        where = traceback.extract_tb(left.__traceback__)[-1]
        raise ResourceError(
            f"{where.filename}, line {where.lineno}, ends the process that imports or runs it (SystemExit: {left.code}). "
            f"Python in {sys.prefix} takes it for a library: rename it, or take its folder off PYTHONPATH"
        ) from None


def answer(value: Any) -> tuple[Any, Report | None]:
    """What a worker returns: a value, and what its process has asked of stores so far."""
    return value, PROCESS.report()


def value_of(reference: Any) -> Any:
    """The value of a call that has ended and returned an `answer`; what came with it is counted."""
    value, told = ray.get(reference)
    PROCESS.hear(told)
    return value


def sealed(*call: Any) -> bytes:
    """A function and its arguments, not to be unpickled before `settle`: that imports JAX, which reads its environment."""
    return cloudpickle.dumps(call)


def opened(blob: bytes, probe: StoreProbe | None, place: int | None = None, gpus: float = 0.0) -> Any:
    """What `sealed` made, in a worker whose environment is settled first and which sees the store.

    Raises:
        StoreNotVisibleError: if it does not.
    """
    if probe is not None:
        probe.require()
    environment.settle(place, gpus)
    return cloudpickle.loads(blob)  # from our own driver, over Ray's channel, as everything that Ray itself unpickles
