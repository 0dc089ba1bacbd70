"""Leases in a folder. A lock ends with its process, and a heartbeat tells other nodes of a shared file system."""

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

# flock belongs to the open file, which a forked child shares. A child that outlives its parent would keep the parent's
# lease, so the child closes its copy. This leaves the parent's lock in place.
_lease_files: set[int] = set()


def _drop_leases_in_child() -> None:
    for fd in _lease_files:
        with contextlib.suppress(OSError):
            os.close(fd)
    _lease_files.clear()


os.register_at_fork(after_in_child=_drop_leases_in_child)


@contextlib.contextmanager
def hold_in_folder(path: str, where: str, holder: dict[str, Any] | str) -> Iterator[Lease]:
    """Hold the lease of the file `path`, which contains a note on its holder.

    On one machine `flock` decides, and a dead process frees its lease at once. On some shared file systems `flock` is
    local to a node (NFS mounted with `local_lock`, Lustre with `localflock`). A holder therefore touches the file at
    every beat, and a process that gets the lock but finds a fresh note of another node is refused. Ages are differences
    between times of the file system, never between the clocks of two machines. If two nodes take a free lease at the
    same moment, the later note stays, and the other holder notices at its next beat.

    Raises:
        OSError: if the file cannot be written.
        HeldError: if another process holds the lease.
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
        # The file is never removed. A process that had opened it before would lock a file without a name, and two
        # processes would hold the lease.
        _write(fd, json.dumps(note).encode())
        lease = HeldLease(where)

        def beat() -> str | None:
            with contextlib.suppress(OSError):  # the file system is unavailable for all processes
                seen = _noted(path)
                if seen.get("token", note["token"]) != note["token"]:
                    return describe(seen)
                os.utime(path)  # this sets the server's time, also on NFS
            return None

        try:
            with beating(lease, beat):
                yield lease
        finally:
            # In a forked child that leaves the block, the file is already closed.
            if fd in _lease_files and _noted(path).get("token", note["token"]) == note["token"]:
                _write(fd, b"")
    finally:
        if fd in _lease_files:
            _lease_files.discard(fd)
            os.close(fd)


def held_in_folder(path: str, where: str) -> str | None:
    """Return a text on the holder of the lease `path`, as in the error of `hold_in_folder`; None if it is free.

    Nothing is written.

    Raises:
        OSError: if the file cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # NFS allows only this lock for files opened for reading
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
    # The file is opened again each time, because NFS then asks its server for the current content.
    try:
        with open(path, "rb") as file:
            return read_note(file.read(4096))
    except FileNotFoundError:
        return {}


def _modified(path: str) -> datetime:
    return datetime.fromtimestamp(os.stat(path).st_mtime, UTC)


def _now(path: str) -> datetime:
    """Return the file system's time, from the date of a new file."""
    probe = f"{path}.{uuid.uuid4().hex}"
    try:
        with open(probe, "wb") as file:
            file.write(b"?")
        return _modified(probe)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(probe)
