"""Threads that share the work on one tile: strips or panels of its rows, each with a BLAS of one thread.

A BLAS of several threads splits each product evenly and waits for the last part. Beside threads that read, check and write
tiles it waits for the one whose core was taken: products that run at 150 GF/s alone ran at 100. Strips are taken by whoever is
free, a strip goes through all products at hand without waiting for the others, and triangular solves, of which OpenBLAS makes
less with threads of its own, are strips as well.

Skinny products (`products.py`) gain more: the threads of a BLAS spin while they wait for each other, and take the core from the thread
that does the work. Nine vectors and 5,000 points in a run on two cores: 38 ms a pass with two threads of BLAS, 20 with lanes, 27 with one
thread; beside other busy processes 320 with two threads of BLAS, and 35 with lanes.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

Part = TypeVar("Part")


# A limit on the threads of BLAS is one of the whole process: whoever opens lanes inside would count one thread.
_OPEN: ContextVar[Lanes | None] = ContextVar("open lanes", default=None)


class _Threads(ThreadPoolExecutor):
    """A pool that knows how many threads it has."""

    def __init__(self, count: int) -> None:
        super().__init__(max_workers=count, thread_name_prefix="lane")
        self.count = count


class Lanes:
    """As many threads as BLAS may use when they are opened.

    The result does not depend on how strips are dealt out. Where `strips` cuts depends on the number of threads, and rounding
    may depend on that, as it does in a BLAS of several threads; parts of a fixed size leave nothing that depends on it.
    """

    def __init__(self) -> None:
        self._pool: _Threads | None = None  # None is the calling thread alone

    @property
    def _count(self) -> int:
        """Of threads that share the strips."""
        return 1 if self._pool is None else self._pool.count

    @contextmanager
    def open(self) -> Iterator[None]:
        """While strips are worked on: BLAS has one thread in every lane. Lanes that are opened inside are these."""
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
        count = max((library.num_threads or 1 for library in _libraries()), default=1)
        if count != self._count:
            self.close()
            self._pool = _Threads(count) if count > 1 else None
        token = _OPEN.set(self)
        try:
            with _controller().limit(limits=1, user_api="blas") if count > 1 else nullcontext():
                yield
        finally:
            _OPEN.reset(token)

    def each(self, work: Callable[[Part], None], parts: Sequence[Part]) -> None:
        """Do `work` for all parts; what one of them raises is raised."""
        if self._pool is None or len(parts) == 1:
            for part in parts:
                work(part)
        else:
            list(self._pool.map(work, parts))

    def strips(self, rows: int) -> list[slice]:
        """The rows of a tile, divided, the last rows first.

        For every lane a strip of half its share and two of a quarter: lanes that were held up are waited for no longer than a
        small strip takes, and smaller ones would be slower (1,000 rows 149 GF/s, 500: 144, 250: 135, 125: 122). Strips of a
        triangle are longer the further down: the long ones come first too.
        """
        if self._count == 1:
            return [slice(0, rows)]
        shares = [part for part in (2, 1, 1) for _ in range(self._count)]
        edges = [rows * sum(shares[k:]) // sum(shares) for k in range(len(shares) + 1)]
        return [slice(low, high) for high, low in itertools.pairwise(edges) if low < high]

    def close(self) -> None:
        """End the threads."""
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
