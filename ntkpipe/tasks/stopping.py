"""Stop requests. A run ends at the next safe point: between tasks, or between calls of a pool.

Signal handlers only record the request. Executors check for it at points where no finished work is lost.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

from ntkpipe.errors import RequeueError

GRACE_SECONDS = 20.0
"""Seconds after which a run without a safe point, such as in a long factorisation, exits.

Stored objects are written atomically, so only the work in progress is lost."""

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_asked: list[str] = []


def check() -> None:
    """Mark a safe point.

    Raises:
        RequeueError: if a stop was requested.
    """
    if _asked:
        raise RequeueError(f"this run received {_asked[0]}. Finished work is kept: repeat the same command to continue")


def ask(reason: str) -> None:
    """Request a stop. The last line of the run contains the reason."""
    _asked.append(reason)


def forget() -> None:
    """Withdraw all requests."""
    _asked.clear()


@contextlib.contextmanager
def on_signals() -> Iterator[None]:
    """Context manager in which SIGTERM and SIGUSR1 (which SLURM sends before the time limit) request a stop.

    It does nothing outside the main thread, because Python handles signals only there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _on_signal) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            # A handler that C code has set is reported as None and cannot be restored.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        forget()


@contextlib.contextmanager
def keeping_handlers() -> Iterator[None]:
    """Context manager that restores the handlers of our signals, because the start of Ray replaces that of SIGTERM.

    Raises:
        RequeueError: for a SIGTERM while the handler of Ray was active, if `on_signals` is in use.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    except SystemExit as error:
        if error.code != signal.SIGTERM or before[signal.SIGTERM] is not _on_signal:
            raise
        ask(signal.SIGTERM.name)
        check()
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


def _on_signal(number: int, _: object) -> None:
    """Request a stop, and exit after the grace period."""
    first = not _asked
    ask(signal.Signals(number).name)
    if first:
        timer = threading.Timer(GRACE_SECONDS, os._exit, (RequeueError.exit_code,))
        timer.daemon = True
        timer.start()
