"""The driver of a joined cluster below a process that waits for it: Ray may end a driver without a word.

Where Ray's own process on the driver's node is gone, the next use of its shared memory ends the driver from C++, with code 1:
no handler runs and nothing is said. Whoever waits for the driver sees the end, finds that nobody answers for the node, and
tells what to do instead. Linux only; elsewhere a driver has nobody above it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from typing import NoReturn

from ntkpipe.errors import RequeueError

# Told to the waiting process: passed on. SIGINT of a terminal reaches both anyway.
_PASSED_ON = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_WAITED_FOR = {*_PASSED_ON, signal.SIGCHLD}
_FROM_A_PROCESS = 0  # si_code up to which a signal was sent by one, not by the kernel
_PR_SET_PDEATHSIG = 1
# How Ray ends a driver: `_exit(1)`, a failed check, or an exception that nobody expects of a connection.
_UNEXPLAINED = (1, -signal.SIGABRT)
_CONNECT_SECONDS = 2.0
# A process that is ending closes one socket after the other.
_PAUSES = (0.0, 0.3, 1.0)

_allowed = False
_joined: int | None = None


def allow_fork() -> None:
    """Say that this process is a command of its own, which may `fork_driver`."""
    global _allowed
    _allowed = True


def fork_driver() -> None:
    """Go on in a child, for which this process waits and whose end it shares; only in a command, and once.

    Call it before anything is computed: threads of other libraries do not live on in the child.
    """
    global _allowed, _joined
    if not _allowed or sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        return
    _allowed = False
    told, _joined = os.pipe()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)
    parent = os.getpid()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    child = os.fork()
    if child:
        os.close(_joined)
        _end_as(_wait_for(child), told)
    os.close(told)
    # A waiting process that is killed takes the driver along.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def note(*addresses: str) -> None:
    """Tell the waiting process, if there is one, who must answer as long as the cluster is there: `host:port` each."""
    if _joined is not None:
        os.write(_joined, (" ".join(addresses) + " ").encode())


def refused(address: str) -> bool:
    """Whether nobody listens at `host:port` any more; one that is slow to answer is there."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def _wait_for(child: int) -> int:
    """The exit code of the child, or minus the signal that ended it; signals to this process are passed on to it."""
    while True:
        told = signal.sigwaitinfo(_WAITED_FOR)
        if told.si_signo != signal.SIGCHLD:
            if told.si_code <= _FROM_A_PROCESS:
                os.kill(child, told.si_signo)
            continue
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)


def _end_as(code: int, told: int) -> NoReturn:
    """End this process as the driver ended; where the cluster was lost and the driver could not say so, as it should have."""
    if code in _UNEXPLAINED and (gone := _gone(told)):
        print(
            f"stopped: Ray has ended this run, because its cluster does not answer any more ({', '.join(gone)}): nothing "
            "stored is lost. Start the cluster and the same command again.",
            file=sys.stderr,
            flush=True,
        )
        code = RequeueError.exit_code
    if code < 0:
        if code != -signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [-code])
        os.kill(os.getpid(), -code)
    os._exit(code)


def _gone(told: int) -> list[str]:
    """Who of those that the driver has noted does not answer any more."""
    os.set_blocking(told, False)
    try:
        joined = os.read(told, 4096).decode().split()
    except BlockingIOError:  # nothing was noted, and a process that the driver has started lives on
        return []
    for pause in _PAUSES:
        time.sleep(pause)
        if gone := [address for address in joined if refused(address)]:
            return gone
    return []
