"""The outcome of a remote call: its value, an error of user code, or a lost worker."""

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

# The worker, its node or its result is lost, or Ray killed the worker for memory. None of these is the task's fault.
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

# Seconds between two checks for stop requests while the driver waits for results.
TICK_SECONDS = 1.0
# The cluster is checked every other tick.
_BROKEN = 4


def original(error: Exception) -> BaseException:
    """Return the error of user code, with the worker's traceback as a note; errors of Ray are returned unchanged."""
    if isinstance(error, rx.RayTaskError) and isinstance(error.cause, BaseException):
        cause = error.cause
        cause.add_note(f"raised in a worker:\n{error}")
        return cause
    return error


def given_up(who: str, times: int, error: Exception) -> LostWorkerError:
    """Return the error for a worker that died repeatedly."""
    if isinstance(error, (rx.NodeDiedError, rx.LocalRayletDiedError)):
        return LostWorkerError(
            f"{who} lost its node {times} times ({type(error).__name__}): repeat the same command on more stable nodes"
        )
    if not isinstance(error, rx.OutOfMemoryError):
        # The system or an error in a library's native code killed the process. Its exit does not tell which of them.
        return LostWorkerError(
            f"{who} died {times} times ({type(error).__name__}) without an error message. The most frequent cause is "
            "a lack of memory: lower cluster.workers, grid.edge or cluster.memory_gib, or on a cluster raise "
            "cluster.memory_per_task. If memory was free, use cluster=serial to see the error in this process."
        )
    return LostWorkerError(
        f"{who} died {times} times, killed by Ray for lack of memory ({type(error).__name__}): lower cluster.workers, "
        "grid.edge or cluster.memory_gib, or on a cluster raise cluster.memory_per_task"
    )


def wait(references: Collection[Any], tick: Callable[[], None]) -> Any:
    """Return the first reference whose call has ended, and check for stop requests and the cluster while waiting.

    Args:
        references: references of the calls; `tick` may add to them.
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
        except OSError:  # the connection to Ray's process on this node was lost: `tick` checks whether it still exists
            broken += 1
            if broken == _BROKEN:
                raise
            time.sleep(TICK_SECONDS)
            continue
        if ready:
            return ready[0]


@contextlib.contextmanager
def staying() -> Iterator[None]:
    """Context manager that turns the exit of a worker's process into an error.

    Otherwise a module that exits on import would be reported as a lack of memory.

    Raises:
        ResourceError: with the line that called the exit.
    """
    try:
        yield
    except SystemExit as left:
        where = traceback.extract_tb(left.__traceback__)[-1]
        raise ResourceError(
            f"{where.filename}, line {where.lineno}, exits the process that imports or runs it (SystemExit: "
            f"{left.code}). Python in {sys.prefix} imports it as a library: rename the file, or remove its folder "
            "from PYTHONPATH"
        ) from None


def answer(value: Any) -> tuple[Any, Report | None]:
    """Return the answer of a worker: a value, and the number of store requests of its process."""
    return value, PROCESS.report()


def value_of(reference: Any) -> Any:
    """Return the value of an `answer`, and add its store requests to the counts of this process."""
    value, told = ray.get(reference)
    PROCESS.hear(told)
    return value


def sealed(*call: Any) -> bytes:
    """Return a pickled function with its arguments.

    It is unpickled after `settle`, because unpickling imports JAX, which reads the environment.
    """
    return cloudpickle.dumps(call)


def opened(blob: bytes, probe: StoreProbe | None, place: int | None = None, gpus: float = 0.0) -> Any:
    """Return the unpickled call of `sealed` in a worker, after settling its environment and checking the store.

    Raises:
        StoreNotVisibleError: if the worker cannot read the store.
    """
    if probe is not None:
        probe.require()
    environment.settle(place, gpus)
    return cloudpickle.loads(blob)  # the data comes from our driver over Ray's channel, like everything that Ray
    # unpickles
