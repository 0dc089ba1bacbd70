"""Threads that share the work on one tile. Each processes strips or panels of its rows with a single-threaded BLAS.

A multithreaded BLAS splits each product evenly and waits for the last part. If other threads read, check and write tiles, it
waits for the part whose core they use: products ran at 100 GF/s instead of 150. Here the next free thread takes a strip, and
a strip goes through all available products without waiting for other strips. Triangular solves, which OpenBLAS does not
speed up with its threads, are divided into strips as well.

Skinny products (`products.py`) gain more, because waiting threads of a BLAS spin and take the core from the thread that
works. Nine vectors and 5,000 points in a run on two cores took 38 ms a pass with two threads of BLAS, 20 with lanes, and 27
with one thread; beside other busy processes 320 with two threads of BLAS, and 35 with lanes.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

Part = TypeVar("Part")


# The thread limit of BLAS is global in the process, so nested lanes would count one thread.
_OPEN: ContextVar[Lanes | None] = ContextVar("open lanes", default=None)


class _Threads(ThreadPoolExecutor):
    """A pool with a known number of threads. It runs calls that were submitted with `later` when no other call waits."""

    def __init__(self, count: int) -> None:
        super().__init__(max_workers=count, thread_name_prefix="lane")
        self.count = count
        self._soon: deque[tuple[Future, Callable[[], Any]]] = deque()
        self._late: deque[tuple[Future, Callable[[], Any]]] = deque()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Queue a call."""
        return self._put(self._soon, functools.partial(fn, *args, **kwargs))

    def later(self, call: Callable[[], Any]) -> Future:
        """Queue a call that runs when no call of `submit` waits."""
        return self._put(self._late, call)

    def _put(self, queue: deque[tuple[Future, Callable[[], Any]]], call: Callable[[], Any]) -> Future:
        future: Future = Future()
        queue.append((future, call))
        super().submit(self._next)  # one entry per call; `_next` picks the call when it runs
        return future

    def _next(self) -> None:
        try:
            future, call = self._soon.popleft()
        except IndexError:
            future, call = self._late.popleft()
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)


class Lanes:
    """Threads for strips of work. Their number is that of the threads which BLAS may use when the lanes are opened.

    The result does not depend on the assignment of strips to threads. The cuts of `strips` depend on the number of threads,
    and so rounding may depend on it, as for a multithreaded BLAS. Parts of a fixed size avoid this.
    """

    def __init__(self) -> None:
        self._pool: _Threads | None = None  # None is only the calling thread
        self._late: list[Future] = []
        self._limit: Any = None  # the limit on the threads of BLAS, while it is set

    @property
    def ahead(self) -> bool:
        """Whether `later` may be used: the lanes are open, have threads, and do not belong to a caller."""
        return self._pool is not None and _OPEN.get() is self

    @property
    def _count(self) -> int:
        """Number of threads that share the strips."""
        return 1 if self._pool is None else self._pool.count

    @contextmanager
    def open(self) -> Iterator[None]:
        """Context manager for work on strips: BLAS has one thread per lane. Nested use gives the same lanes.

        If work of `later` still runs after the block, BLAS keeps one thread until the next block or `drop`.
        """
        outer = _OPEN.get()
        if outer is self:
            yield
            return
        if outer is not None:
            own, self._pool = self._pool, outer._pool
            try:
                yield
            finally:
                self._pool = own
            return
        if self._limit is None:  # with a limit, BLAS would report one thread
            count = max((library.num_threads or 1 for library in _libraries()), default=1)
            if count != self._count:
                self.close()
                self._pool = _Threads(count) if count > 1 else None
            if count > 1:
                self._limit = _controller().limit(limits=1, user_api="blas")
        token = _OPEN.set(self)
        try:
            yield
        finally:
            _OPEN.reset(token)
            if all(part.done() for part in self._late):
                self.drop()

    def later(self, work: Callable[[Part], None], parts: Sequence[Part]) -> list[Future]:
        """Begin `work` for all parts. A lane runs a part when no part of `each` waits. It may be called only if `ahead`."""
        assert self._pool is not None
        begun = [self._pool.later(functools.partial(work, part)) for part in parts]
        self._late = [part for part in self._late if not part.done()] + begun
        return begun

    def drop(self) -> None:
        """Cancel the work of `later`, and give BLAS its threads back."""
        late, self._late = self._late, []
        for part in late:
            part.cancel()
        wait(late)
        limit, self._limit = self._limit, None
        if limit is not None:
            limit.restore_original_limits()

    def each(self, work: Callable[[Part], None], parts: Sequence[Part]) -> None:
        """Call `work` for all parts; raises the error of a part."""
        if self._pool is None or len(parts) == 1:
            for part in parts:
                work(part)
        else:
            list(self._pool.map(work, parts))

    def strips(self, rows: int) -> list[slice]:
        """Strips that divide the rows of a tile, the last rows first.

        Every lane gets two strips. Smaller strips would be slower (1,000 rows 149 GF/s, 500: 144, 250: 135, 125: 122). A lane
        without a strip takes work of `later`. Lower strips of a triangle are longer and come first.
        """
        if self._count == 1:
            return [slice(0, rows)]
        count = 2 * self._count
        edges = [rows * k // count for k in reversed(range(count + 1))]
        return [slice(low, high) for high, low in itertools.pairwise(edges) if low < high]

    def close(self) -> None:
        """End the threads."""
        self.drop()
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None


@functools.cache
def _controller() -> ThreadpoolController:
    import scipy.linalg.cython_blas  # noqa: F401  the library that is called must be loaded to be seen
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _libraries() -> list:
    return [found for found in _controller().lib_controllers if found.user_api == "blas"]
