"""Repeats a request until it succeeds, fails permanently, or a time limit is reached.

The pauses follow exponential backoff with full jitter.
"""

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
        cause: `throttled`, `server`, `connection` or `conflict`, as in `Statistics.causes`.
        text: the message of the server or the network.
        at_most: largest number of useful repetitions; None sets no limit other than the time.
    """

    def __init__(self, cause: str, text: str, at_most: int | None = None) -> None:
        super().__init__(text)
        self.cause = cause
        self.at_most = at_most


@dataclass(frozen=True)
class RetryPolicy:
    """The time for which a request is repeated, and the pauses between repetitions.

    Args:
        seconds: time limit in seconds after the first failure.
        first: longest pause in seconds before the first repetition. It doubles with every repetition.
        longest: limit of the pause in seconds.
    """

    seconds: float = 300.0
    first: float = 0.1
    longest: float = 20.0

    @classmethod
    def from_environment(cls) -> RetryPolicy:
        """Return the default policy, with the time limit `NTKPIPE_STORE_RETRY_SECONDS` if it is set.

        Raises:
            ConfigError: if the variable is not a number of seconds.
        """
        stated = os.environ.get(RETRY_VARIABLE)
        if stated is None:
            return cls()
        try:
            seconds = float(stated)
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds < float("inf"):
            raise ConfigError(f"{RETRY_VARIABLE}={stated!r} is not a number of seconds: give one, such as 300")
        return cls(seconds)

    def run(self, call: Callable[[], _T], what: str, on_retry: Callable[[str, float], None]) -> _T:
        """Call `call`, repeat it while it raises `TemporaryError`, and return its result.

        The pause before repetition k = 0, 1, ... is uniform between 0 and `first * 2**k` (full jitter), so workers that
        a server throttled together return at different times. A server's `Retry-After` is not used, because the client
        library does not pass it on.

        Args:
            call: function that makes one attempt.
            what: description of the request, for the error's text.
            on_retry: called with the cause and the pause in seconds before each repetition.

        Raises:
            StoreError: if the time limit is reached. Other exceptions of `call` are raised at once.
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
                        f"{what} failed {failures} times in {now - began:.0f} s; the last error: {error}. Stored "
                        f"objects are intact: repeat the same command when the store answers. {RETRY_VARIABLE} (now "
                        f"{self.seconds:g}) sets how long to wait for it."
                    ) from error
                on_retry(error.cause, pause)
                time.sleep(pause)
