"""The whole Ray backend: stateless tasks with bounded flight, and pools of actors that are replaced when they die."""

from __future__ import annotations

import logging
import os

# Ray reads it on import; unset, its workers warn about a change of default in the future.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping
from itertools import count
from typing import Any

import numpy as np
import ray
from ray import exceptions as rx

from ntkpipe.tasks.graph import BlockedError, LostWorkerError, Task, TaskResult

_log = logging.getLogger(__name__)

# The worker, its node or its result is gone, or Ray killed the worker for memory: none says anything about the task.
LOST = (
    rx.WorkerCrashedError,
    rx.NodeDiedError,
    rx.LocalRayletDiedError,
    rx.ActorDiedError,
    rx.ActorUnavailableError,
    rx.ObjectLostError,
    rx.OutOfMemoryError,
)

# Larger arrays travel once through the object store instead of once per worker inside the call.
_SHARED_BYTES = 100_000


def _original(error: Exception) -> BaseException:
    """What user code raised, with the worker's traceback as a note; Ray's own errors as they are."""
    if isinstance(error, rx.RayTaskError) and isinstance(error.cause, BaseException):
        cause = error.cause
        cause.add_note(f"raised in a worker:\n{error}")
        return cause
    return error


def _given_up(who: str, times: int, error: Exception) -> LostWorkerError:
    return LostWorkerError(
        f"{who} died {times} times, most likely for lack of memory ({type(error).__name__}): "
        "lower cluster.workers, grid.edge or cluster.memory_gib"
    )


class RayPool:
    """Stateful workers as actors; see `WorkerPool` for what they promise.

    Actors claim no CPU of Ray's accounting, so that a pool and `run` never wait for each other.
    """

    def __init__(
        self,
        factory: Callable[..., Any],
        args_per_worker: list[tuple[Any, ...]],
        *,
        retries: int,
        environment: Mapping[str, str],
    ) -> None:
        self._factory = factory
        self._args = args_per_worker
        self._retries = retries
        self._holder: Any = ray.remote(num_cpus=0, max_restarts=0, runtime_env={"env_vars": dict(environment)})(_Holder)
        self._actors: list[Any] = []
        self._closed = False
        try:
            started = [self._start(worker) for worker in range(len(args_per_worker))]
            self._actors = [actor for actor, _ in started]
            for worker, (_, built) in enumerate(started):
                self._finish(worker, built, lambda actor: actor.ready.remote())
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        """Number of workers."""
        return len(self._args)

    def broadcast(self, method: str, *args: Any) -> list[Any]:
        """Call `method(*args)` on every worker at once; results in the order of the workers."""
        self._check_open()
        args = tuple(ray.put(a) if isinstance(a, np.ndarray) and a.nbytes >= _SHARED_BYTES else a for a in args)

        def again(actor: Any) -> Any:
            return actor.call.remote(method, *args)

        references = [again(actor) for actor in self._actors]
        return [self._finish(worker, reference, again) for worker, reference in enumerate(references)]

    def call(self, worker: int, method: str, *args: Any) -> Any:
        """Call `method(*args)` on one worker."""
        self._check_open()
        if not 0 <= worker < self.size:
            raise IndexError(f"worker {worker} of a pool of {self.size}")

        def again(actor: Any) -> Any:
            return actor.call.remote(method, *args)

        return self._finish(worker, again(self._actors[worker]), again)

    def close(self) -> None:
        """Kill the actors, by handle. Safe to call twice, and after Ray has stopped."""
        self._closed = True
        actors, self._actors = self._actors, []
        if ray.is_initialized():
            for actor in actors:
                ray.kill(actor)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the pool is closed: make a new one with executor.pool(...)")

    def _start(self, worker: int) -> tuple[Any, Any]:
        """A new actor for `worker` and the reference of the call that builds its state.

        The state is built by a method, not in the constructor: what the factory raises is then an ordinary exception.
        """
        actor = self._holder.remote()
        built = actor.build.remote(self._factory, self._args[worker])
        return actor, built

    def _finish(self, worker: int, reference: Any, again: Callable[[Any], Any]) -> Any:
        """The result of a call; a worker that died is replaced and the call repeated on the new one."""
        for attempt in count():
            try:
                return ray.get(reference)
            except rx.RayTaskError as error:
                raise _original(error) from None
            except LOST as error:
                if attempt == self._retries:
                    raise _given_up(f"pool worker {worker}", attempt + 1, error) from error
                _log.warning("pool worker %d died (%s) and is replaced", worker, type(error).__name__)
            try:
                # The old one may be unreachable rather than dead; it must not go on holding memory.
                ray.kill(self._actors[worker])
                self._actors[worker], built = self._start(worker)
                ray.get(built)
                reference = again(self._actors[worker])
            except rx.RayTaskError as error:
                raise _original(error) from None
            except LOST:
                reference = again(self._actors[worker])  # fails at once and is counted above
        raise AssertionError("unreachable")


class _Holder:
    """The actor: one state object and calls to it."""

    def __init__(self) -> None:
        self._state: Any = None

    def build(self, factory: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._state = factory(*args)

    def ready(self) -> None:
        pass

    def call(self, method: str, *args: Any) -> Any:
        return getattr(self._state, method)(*args)


class RayExecutor:
    """Runs tasks on the Ray that this process has initialised; `cluster.session` starts and stops it.

    Tasks of one environment reuse Ray's worker processes, so compiled functions and cached rows survive between them.

    Args:
        workers: processes that compute at the same time; at most Ray's CPUs.
        retries: how often a task (or a pool's call) is repeated after its worker was lost.
        environment: variables of the workers, such as their number of threads.
    """

    def __init__(self, workers: int, *, retries: int = 3, environment: Mapping[str, str] | None = None) -> None:
        self._workers = workers
        self._retries = retries
        self._environment = dict(environment or {})
        self._pools: list[RayPool] = []
        # Retries are counted here, where the cause is seen, so that `attempts` is exact.
        remote = ray.remote(num_cpus=1, max_retries=0, runtime_env={"env_vars": self._environment})
        self._invoke: Any = remote(_invoke)

    @property
    def workers(self) -> int:
        """Number of processes that compute at the same time."""
        return self._workers

    def run(self, graph: Iterable[Task]) -> Generator[TaskResult, None, None]:
        """Run the tasks of `graph`; see `Executor.run`.

        At most three tasks per worker are taken from the graph before their results are: one that runs, one that
        waits in its worker's queue and one on its way, so that no worker idles while the driver is busy.
        """
        limit = 3 * self._workers
        source = iter(graph)
        exhausted = False
        waiting: dict[Hashable, Task] = {}  # taken, but something that they come after is not done
        flying: dict[Any, tuple[Task, int]] = {}
        seen: set[Hashable] = set()
        done: set[Hashable] = set()
        failed: dict[Hashable, BaseException] = {}
        try:
            while True:
                while not exhausted and len(flying) + len(waiting) < limit:
                    task = next(source, None)
                    if task is None:
                        exhausted = True
                        break
                    if task.key in seen:
                        raise ValueError(f"two tasks of one graph have the key {task.key!r}")
                    waiting[task.key] = task
                    yield from self._dispatch(waiting, flying, seen, done, failed)
                    seen.add(task.key)
                if not flying:
                    # Tasks come after earlier ones only, so the earliest that waits is never stuck.
                    assert exhausted
                    assert not waiting
                    return
                ready, _ = ray.wait(list(flying), num_returns=1)
                task, attempt = flying.pop(ready[0])
                result = self._collect(task, attempt, ready[0])
                if result is None:
                    flying[self._submit(task)] = (task, attempt + 1)
                    continue
                if result.error is None:
                    done.add(task.key)
                else:
                    failed[task.key] = result.error
                del ready
                yield result
                yield from self._dispatch(waiting, flying, seen, done, failed)
        finally:
            if ray.is_initialized():
                for reference in flying:
                    ray.cancel(reference)

    def pool(self, factory: Callable[..., Any], args_per_worker: list[tuple[Any, ...]]) -> RayPool:
        """One actor per entry, holding `factory(*args_per_worker[k])`."""
        pool = RayPool(factory, args_per_worker, retries=self._retries, environment=self._environment)
        self._pools.append(pool)
        return pool

    def close(self) -> None:
        """Stop the pools; Ray itself belongs to the session."""
        for pool in self._pools:
            pool.close()
        self._pools = []

    def _dispatch(
        self,
        waiting: dict[Hashable, Task],
        flying: dict[Any, tuple[Task, int]],
        seen: set[Hashable],
        done: set[Hashable],
        failed: dict[Hashable, BaseException],
    ) -> Iterator[TaskResult]:
        """Submit what can start now and yield what never will; in the graph's order, so one pass is enough."""
        for task in list(waiting.values()):
            blocked = BlockedError.by(task, seen, failed)
            if blocked is not None:
                failed[task.key] = blocked
                del waiting[task.key]
                yield TaskResult(task.key, error=blocked, attempts=0)
            elif all(key in done for key in task.after):
                del waiting[task.key]
                flying[self._submit(task)] = (task, 1)

    def _submit(self, task: Task) -> Any:
        return self._invoke.remote(task.function, task.args)

    def _collect(self, task: Task, attempt: int, reference: Any) -> TaskResult | None:
        """The outcome of a finished task; None if its worker was lost and it should be tried again."""
        try:
            return TaskResult(task.key, ray.get(reference), attempts=attempt)
        except LOST as error:
            if attempt <= self._retries:
                _log.warning("task %r lost its worker (%s) and is tried again", task.key, type(error).__name__)
                return None
            return TaskResult(
                task.key, error=_given_up(f"the worker of task {task.key!r}", attempt, error), attempts=attempt
            )
        except rx.RayError as error:
            return TaskResult(task.key, error=_original(error), attempts=attempt)


def _invoke(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    return function(*args)
