"""Repeat a request until it succeeds, fails for good, or a stated time is over: exponential backoff with full jitter."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ntkpipe.errors import ConfigError, StoreError

_T = TypeVar("_T")

RETRY_VARIABLE = "NTKPIPE_STORE_RETRY_SECONDS"


class TemporaryError(Exception):
    """A failure that may pass.

    Args:
        cause: `throttled`, `server`, `connection` or `conflict`; see `Statistics.causes`.
        text: what the server or the network said.
        at_most: repetitions that make sense; None leaves it to the time.
    """

    def __init__(self, cause: str, text: str, at_most: int | None = None) -> None:
        super().__init__(text)
        self.cause = cause
        self.at_most = at_most


@dataclass(frozen=True)
class RetryPolicy:
    """How long a request is repeated.

    Args:
        seconds: from its first failure on.
        first: longest pause before the first repetition; it doubles from one to the next.
        longest: limit of the doubling.
    """

    seconds: float = 300.0
    first: float = 0.1
    longest: float = 20.0

    @classmethod
    def from_environment(cls) -> RetryPolicy:
        """The default, with `NTKPIPE_STORE_RETRY_SECONDS` if it is set.

        Raises:
            ConfigError: if that is no time.
        """
        stated = os.environ.get(RETRY_VARIABLE)
        if stated is None:
            return cls()
        try:
            seconds = float(stated)
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds < float("inf"):
            raise ConfigError(f"{RETRY_VARIABLE}={stated!r} is no number of seconds: give one, as in 300")
        return cls(seconds)

    def run(self, call: Callable[[], _T], what: str, on_retry: Callable[[str, float], None]) -> _T:
        """The result of `call`, repeated while it raises `TemporaryError`.

        The pause before repetition k is uniform below `first * 2**k`: workers that a server throttled together come back
        spread out (full jitter). A server's `Retry-After` is not known here: the client library does not pass it on.

        Args:
            call: one attempt.
            what: that is attempted, for the error's text.
            on_retry: told the cause and the pause before each repetition.

        Raises:
            StoreError: when the time is over; anything else that `call` raises comes out at once.
        """
        failures, began = 0, 0.0
        while True:
            try:
                return call()
            except TemporaryError as error:
                now = time.monotonic()
                began = began if failures else now
                failures += 1
                pause = random.uniform(0.0, min(self.longest, self.first * 2.0 ** min(failures - 1, 30)))  # noqa: S311
                over = now + pause - began > self.seconds
                if over or (error.at_most is not None and failures > error.at_most):
                    raise StoreError(
                        f"{what} failed {failures} times in {now - began:.0f} s, last: {error}. What is stored is intact: "
                        f"start the same command again when the store answers; {RETRY_VARIABLE} (now {self.seconds:g}) "
                        "states how long to wait for it."
                    ) from error
                on_retry(error.cause, pause)
                time.sleep(pause)
