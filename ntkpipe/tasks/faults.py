"""Small tasks and states that fail on purpose, for tests of executors. Workers can import them."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


def echo(value: Any) -> Any:
    """Return the argument."""
    return value


def process_id(*_: Any) -> int:
    """The worker's process id."""
    return os.getpid()


def environment(name: str) -> str | None:
    """The value of an environment variable in the worker."""
    return os.environ.get(name)


def sleep(seconds: float, value: Any = None) -> Any:
    """Return `value` after `seconds`."""
    time.sleep(seconds)
    return value


def stamp(path: str, text: str, seconds: float = 0.0) -> float:
    """Append a line to a file in one write after `seconds`; return the start time."""
    start = time.time()
    time.sleep(seconds)
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(text + "\n")
    return start


def meet(folder: str, name: str, count: int, seconds: float = 120.0) -> bool:
    """Whether `count` tasks run at the same time: each creates a file and waits up to `seconds` for the others."""
    (Path(folder) / name).touch()
    end = time.monotonic() + seconds
    while len(list(Path(folder).iterdir())) < count:
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def straggle(folder: str, seconds: float, value: Any = None) -> Any:
    """Return `value`; the first call with `folder` waits for `seconds`."""
    try:
        (Path(folder) / "straggler").touch(exist_ok=False)
    except FileExistsError:
        return value
    return sleep(seconds, value)


def fail(error: Exception) -> None:
    """Raise `error`."""
    raise error


class AwkwardError(Exception):
    """An exception that cannot be rebuilt from its `args`, like many exceptions of other libraries."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{reason} ({code})")


def fail_awkwardly() -> None:
    """Raise an error that does not survive a round trip between processes."""
    raise AwkwardError(7, reason="awkward")


def die(*_: Any) -> None:
    """Kill this process with SIGKILL, like the kernel when memory is short. No handler runs."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_until(folder: str, deaths: int, value: Any = None) -> Any:
    """Kill this process in the first `deaths` calls with `folder`; return `value` in later calls."""
    for k in range(deaths):
        try:
            (Path(folder) / f"death-{k}").touch(exist_ok=False)
        except FileExistsError:
            continue
        die()
    return value


@dataclass(frozen=True)
class PoisonedRows:
    """An image source that kills every process which reads one given block of rows.

    Args:
        images: the real source.
        block: of the fatal read.
        start: first row of the fatal read.
    """

    images: Any
    block: str
    start: int

    def read(self, block: str, start: int, stop: int) -> np.ndarray:
        """Read the images, or kill this process."""
        if (block, start) == (self.block, self.start):
            die()
        return self.images.read(block, start, stop)


class Counter:
    """A worker's state for pools: a total, which is lost with its process.

    Args:
        start: initial total.
    """

    def __init__(self, start: int = 0) -> None:
        self.total = start

    def add(self, amount: int) -> int:
        """Add to the total and return it."""
        self.total += amount
        return self.total

    def sum_of(self, array: np.ndarray) -> float:
        """Sum of an array plus the total."""
        return float(array.sum()) + self.total

    def scaled(self, array: np.ndarray) -> np.ndarray:
        """The array times the total."""
        return array * self.total

    def die_until_scaled(self, array: np.ndarray, folder: str, deaths: int) -> np.ndarray:
        """`scaled`, which kills this process in the first `deaths` calls."""
        return die_until(folder, deaths, self.scaled(array))

    def process_id(self) -> int:
        """The worker's process id."""
        return os.getpid()

    def fail(self, error: Exception) -> None:
        """Raise `error`."""
        raise error

    def die_until(self, folder: str, deaths: int) -> int:
        """See `die_until`; returns the total."""
        return die_until(folder, deaths, self.total)


def broken_factory(error: Exception) -> Counter:
    """A factory of a pool that raises `error`."""
    raise error
