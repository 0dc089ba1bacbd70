"""Runs the driver of a joined cluster in a child process, because Ray may end a driver without a message.

If Ray's process on the driver's node is gone, the next use of its shared memory ends the driver from C++ with code 1: no
handler runs, and no message is printed. The parent process sees the end of the driver, finds that the node's addresses do
not answer, and prints what to do. This works on Linux only; on other systems a driver has no such parent.
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

# Signals that the waiting process passes on. SIGINT from a terminal reaches both processes.
_PASSED_ON = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_WAITED_FOR = {*_PASSED_ON, signal.SIGCHLD}
_FROM_A_PROCESS = 0  # Largest si_code of a signal from a process and not from the kernel.
_PR_SET_PDEATHSIG = 1
# How Ray ends a driver: `_exit(1)`, a failed check, or an uncaught exception of a connection.
_UNEXPLAINED = (1, -signal.SIGABRT)
_CONNECT_SECONDS = 2.0
# Seconds to wait, because an ending process closes its sockets one after the other.
_PAUSES = (0.0, 0.3, 1.0)

_allowed = False
_joined: int | None = None


def allow_fork() -> None:
    """Declare that this process is a command, so that it may call `fork_driver`."""
    global _allowed
    _allowed = True


def fork_driver() -> None:
    """Continue in a child process, while this process waits for it and ends in the same way.

    Call this in a command, once, and before anything is computed: threads of other libraries do not survive in the
    child.
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
    # The driver ends if the waiting process is killed.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def note(*addresses: str) -> None:
    """Tell the waiting process, if any, the addresses `host:port` that answer as long as the cluster lives."""
    if _joined is not None:
        os.write(_joined, (" ".join(addresses) + " ").encode())


def refused(address: str) -> bool:
    """Return whether no process listens at `host:port`; a slow answer counts as listening."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def _wait_for(child: int) -> int:
    """Wait for the child, pass signals on to it, and return its exit code, or minus the signal that ended it."""
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
    """End this process in the same way as the driver, and report the loss of the cluster if the driver could not."""
    if code in _UNEXPLAINED and (gone := _gone(told)):
        print(
            f"stopped: Ray ended this run because its cluster no longer answers ({', '.join(gone)}). Nothing stored "
            "is lost: start the cluster and repeat the same command.",
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
    """Return the noted addresses that no longer answer."""
    os.set_blocking(told, False)
    try:
        joined = os.read(told, 4096).decode().split()
    except BlockingIOError:  # nothing was noted, and a process that the driver started is still alive
        return []
    for pause in _PAUSES:
        time.sleep(pause)
        if gone := [address for address in joined if refused(address)]:
            return gone
    return []
