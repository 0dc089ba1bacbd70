"""A run that is told to stop ends at the next safe point: between tasks, and between calls of a pool.

Signals only leave a note here. Executors look at it wherever stopping loses nothing that is finished.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

from ntkpipe.errors import RequeueError

GRACE_SECONDS = 20.0
"""After which a run that has met no safe point, in a long factorisation perhaps, ends at once. Stored objects appear whole
or not at all, so that this costs no more than the work of that moment."""

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_asked: list[str] = []


def check() -> None:
    """A safe point.

    Raises:
        RequeueError: if the run was told to stop.
    """
    if _asked:
        raise RequeueError(f"stopped by {_asked[0]}: nothing finished is lost, the same command goes on")


def ask(reason: str) -> None:
    """Tell the run to stop, for a reason that its last line names."""
    _asked.append(reason)


def forget() -> None:
    """Take back what `ask` said."""
    _asked.clear()


@contextlib.contextmanager
def on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGUSR1 (which SLURM sends ahead of the time limit) stop the run inside the block.

    Does nothing in threads other than the main one, where Python takes no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _on_signal) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            # None: set by C code, which alone could set it again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        forget()


@contextlib.contextmanager
def keeping_handlers() -> Iterator[None]:
    """Put the handlers of our signals back after the block: starting Ray replaces that of SIGTERM by one that exits.

    Raises:
        RequeueError: for a SIGTERM that came while the other handler was there, and `on_signals` is to see to it.
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
    first = not _asked
    ask(signal.Signals(number).name)
    if first:
        timer = threading.Timer(GRACE_SECONDS, os._exit, (RequeueError.exit_code,))
        timer.daemon = True
        timer.start()
