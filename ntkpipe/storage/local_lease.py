"""Leases in a folder: a lock that dies with its process, and a beat for other nodes of a shared file system."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from ntkpipe.errors import HeldError
from ntkpipe.storage.lease import HeldLease, beating, boot_id, describe, is_late, new_note, read_note, still_beats
from ntkpipe.storage.protocol import Lease

# flock belongs to the open file, which a forked child shares: without this, a child that outlives its parent
# would go on holding the parent's lease. Closing the child's copy leaves the parent's lock in place.
_lease_files: set[int] = set()


def _drop_leases_in_child() -> None:
    for fd in _lease_files:
        with contextlib.suppress(OSError):
            os.close(fd)
    _lease_files.clear()


os.register_at_fork(after_in_child=_drop_leases_in_child)


@contextlib.contextmanager
def hold_in_folder(path: str, where: str, holder: dict[str, Any] | str) -> Iterator[Lease]:
    """Hold the lease of the file `path`, which holds a note on its holder.

    Within one kernel `flock` decides, and a dead process frees its lease at once. Some shared file systems keep `flock`
    to a node (NFS mounted with `local_lock`, Lustre with `localflock`): a holder therefore touches the file at every beat,
    and whoever gets the lock but finds a fresh note of another node is refused. Ages are differences between the times
    that the file system itself gave, never between two machines' clocks. Should two nodes take a free lease in the same
    moment, the later note stays, and the other holder notices at its next beat.

    Raises:
        OSError: if the file cannot be written.
        HeldError: if the lease is held.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    _lease_files.add(fd)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise HeldError(f"{where} is held by {describe(_noted(path))}") from error
        present = _noted(path)
        if present.get("boot", boot_id()) != boot_id() and not is_late(present, _modified(path), _now(path)):
            raise HeldError(f"{where} is held by {describe(present)}")
        note = new_note(holder)
        # The file itself is never removed: a process that had opened it just before would lock a file that
        # no longer has a name, and two would hold the lease.
        _write(fd, json.dumps(note).encode())
        lease = HeldLease(where)

        def beat() -> str | None:
            with contextlib.suppress(OSError):  # the file system is away, for everybody
                seen = _noted(path)
                if seen.get("token", note["token"]) != note["token"]:
                    return describe(seen)
                os.utime(path)  # the server's time, on NFS too
            return None

        try:
            with beating(lease, beat):
                yield lease
        finally:
            # Not so in a forked child that left the block: its copy is closed already.
            if fd in _lease_files and _noted(path).get("token", note["token"]) == note["token"]:
                _write(fd, b"")
    finally:
        if fd in _lease_files:
            _lease_files.discard(fd)
            os.close(fd)


def held_in_folder(path: str, where: str) -> str | None:
    """Who holds the lease of the file `path`, as `hold_in_folder` would say; None if nobody does. Nothing is written.

    Raises:
        OSError: if the file cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # what is open for reading takes no more than this on NFS
        except BlockingIOError:
            return f"{where} is held by {describe(_noted(path))}"
    finally:
        os.close(fd)
    present = _noted(path)
    if present.get("boot", boot_id()) == boot_id() or not still_beats(present, lambda: _modified(path)):
        return None
    return f"{where} is held by {describe(present)}"


def _write(fd: int, note: bytes) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, note, 0)


def _noted(path: str) -> dict[str, Any]:
    # Opened anew each time: that is when NFS asks its server for the present content.
    try:
        with open(path, "rb") as file:
            return read_note(file.read(4096))
    except FileNotFoundError:
        return {}


def _modified(path: str) -> datetime:
    return datetime.fromtimestamp(os.stat(path).st_mtime, UTC)


def _now(path: str) -> datetime:
    """The file system's time, as it dates files."""
    probe = f"{path}.{uuid.uuid4().hex}"
    try:
        with open(probe, "wb") as file:
            file.write(b"?")
        return _modified(probe)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(probe)
