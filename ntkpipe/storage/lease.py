"""Leases: their holders, the heartbeat of a living holder, and numbered leases in buckets.

Leases only keep two runs from doing the same work. Put-if-absent is what keeps stored objects correct.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from ntkpipe.errors import ConfigError, HeldError, StoreError
from ntkpipe.storage.answers import ExistsError
from ntkpipe.storage.bucket import Bucket
from ntkpipe.storage.clock import now
from ntkpipe.storage.protocol import LEASE_FOLDER, Lease, MissingObjectError

BEAT_VARIABLE = "NTKPIPE_LEASE_BEAT_SECONDS"
MISSED_BEATS = 3
"""A lease may be taken over after its holder has missed this many beats."""

_CLOCK_GRAIN = timedelta(seconds=1)  # S3 rounds times to seconds


def beat_seconds() -> float:
    """Return the seconds between beats: `NTKPIPE_LEASE_BEAT_SECONDS`, or 10 if it is not set.

    Raises:
        ConfigError: if the variable is not a number between 0.01 and 3600.
    """
    stated = os.environ.get(BEAT_VARIABLE, "10")
    try:
        seconds = float(stated)
    except ValueError:
        seconds = 0.0
    if not 0.01 <= seconds <= 3600:
        raise ConfigError(
            f"{BEAT_VARIABLE}={stated!r} is not a number of seconds between 0.01 and 3600: give one, such as 10"
        )
    return seconds


@dataclass
class HeldLease:
    """An implementation of `Lease`.

    Args:
        name: name of the lease, for messages.
        number: fencing token; 0 outside buckets.
    """

    name: str
    number: int = 0
    _lost: str | None = None

    @property
    def lost(self) -> bool:
        """True after another holder was seen."""
        return self._lost is not None

    def check(self) -> None:
        """Raise `HeldError` if another process has taken the lease over."""
        if self._lost is not None:
            raise HeldError(
                f"{self.name} was taken over by {self._lost} after this process had missed {MISSED_BEATS} beats. Nothing "
                "stored is damaged: stop one of the two runs."
            )

    def lose(self, to: str) -> None:
        """Record the new holder."""
        self._lost = to


def new_note(holder: dict[str, Any] | str) -> dict[str, Any]:
    """Return the content of a lease: the holder, its process and host, its start, and a unique token."""
    what = holder if isinstance(holder, dict) else {"what": holder}
    since = now()
    return {
        **what,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "boot": boot_id(),
        "since": since,
        "beat": beat_seconds(),
        "token": uuid.uuid4().hex,
    }


def boot_id() -> str:
    """Return an id of the running operating system.

    Processes with the same id share locks, even if their containers give the host different names.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:  # this is not Linux
        return socket.gethostname()


def read_note(data: bytes) -> dict[str, Any]:
    """Parse the note of a lease; an empty dictionary if it is missing, damaged or only partly written."""
    try:
        note = json.loads(data)
    except ValueError:
        return {}
    return note if isinstance(note, dict) else {}


def describe(note: dict[str, Any]) -> str:
    """Return a phrase that describes the holder, for messages."""
    said = {key: value for key, value in note.items() if key not in ("boot", "beat", "token", "free")}
    try:
        who = f"process {said.pop('pid')} on {said.pop('host')} since {said.pop('since')}"
    except KeyError:
        return "another process. Wait for it to end, or stop it."
    doing = ", ".join(f"{key} {value}" if key != "what" else str(value) for key, value in said.items())
    return f"{who}{f' ({doing})' if doing else ''}. Wait for it to end, or stop it."


def is_late(note: dict[str, Any], modified: datetime, now: datetime) -> bool:
    """Return whether the holder missed its beats. Both times must come from the store's clock."""
    return now - modified > _patience(note)


def still_beats(note: dict[str, Any], modified: Callable[[], datetime | None]) -> bool:
    """Wait for the allowed number of missed beats, and return whether the holder touched its lease.

    No clocks are compared.

    Args:
        note: note of the holder.
        modified: returns when the lease was last touched; None if it is gone.
    """
    first, deadline = modified(), time.monotonic() + _patience(note).total_seconds()
    while first is not None and time.monotonic() < deadline:
        time.sleep(min(1.0, _patience(note).total_seconds() / 20))
        if (seen := modified()) != first:
            return seen is not None
    return False


def _patience(note: dict[str, Any]) -> timedelta:
    beat = note.get("beat")
    seconds = float(beat) if isinstance(beat, (int, float)) and 0 < beat <= 3600 else 10.0
    return timedelta(seconds=MISSED_BEATS * seconds) + _CLOCK_GRAIN


@contextlib.contextmanager
def beating(lease: HeldLease, beat: Callable[[], str | None]) -> Iterator[None]:
    """Call `beat` regularly in a thread until the block ends, or until it returns another holder."""
    stop = threading.Event()
    every = beat_seconds()

    def run() -> None:
        while not stop.wait(every):
            try:
                other = beat()
            except StoreError:
                continue  # the store is unavailable, so no other process can take the lease over either
            if other is not None:
                lease.lose(other)
                return

    thread = threading.Thread(target=run, name=f"lease {lease.name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5.0)


@contextlib.contextmanager
def hold_in_bucket(bucket: Bucket, name: str, holder: dict[str, Any] | str) -> Iterator[Lease]:
    """Hold a lease in a bucket. It consists of objects `.leases/<name>/<number>`, of which the highest number counts.

    A process that finds the lease free, or late by three beats, puts the next number if it is absent. If several try,
    one succeeds. A holder beats by writing its own object again. If it then sees a higher number, the lease is lost.

    This needs only put-if-absent, which every store must support. Some stores lack conditional updates (by etag), and
    an update that was stored but whose answer got lost would look like a lost lease. Numbers only grow, so they serve
    as fencing tokens.

    Raises:
        HeldError: if another process holds the lease.
        StoreError: if the server ignores put-if-absent.
    """
    folder, where = f"{LEASE_FOLDER}/{name}", f"{name} in {bucket.address.url}"
    note = new_note(holder)
    lease = HeldLease(where, _take(bucket, folder, where, note))
    path = f"{folder}/{lease.number:010d}"

    def beat() -> str | None:
        bucket.write(path, [_packed(note)], create=False)
        top = max(_numbers(bucket, folder), default=(0, None))
        return describe(_noted(bucket, folder, top[0])) if top[0] > lease.number else None

    try:
        with beating(lease, beat):
            yield lease
    finally:
        # The object is kept and marked as free, so that the next holder continues from its number.
        with contextlib.suppress(StoreError):
            bucket.write(path, [_packed({**note, "free": True})], create=False)


def held_in_bucket(bucket: Bucket, name: str) -> str | None:
    """Return a text on the holder of a lease in a bucket, as in the error of `hold_in_bucket`; None if it is free.

    Nothing is written.
    """
    folder = f"{LEASE_FOLDER}/{name}"

    def top() -> tuple[int, datetime] | None:
        return max(_numbers(bucket, folder), default=None)

    if (found := top()) is None:
        return None
    present = _noted(bucket, folder, found[0])

    def modified() -> datetime | None:
        newest = top()
        return None if newest is None else newest[1]

    if not present or present.get("free") or not still_beats(present, modified):
        return None
    return f"{name} in {bucket.address.url} is held by {describe(present)}"


def _take(bucket: Bucket, folder: str, where: str, note: dict[str, Any]) -> int:
    numbers = _numbers(bucket, folder)
    top, modified = max(numbers, default=(0, None))
    if modified is not None:
        present = _noted(bucket, folder, top)
        if not present.get("free") and not is_late(present, modified, _now(bucket)):
            raise HeldError(f"{where} is held by {describe(present)}")
    path = f"{folder}/{top + 1:010d}"
    try:
        bucket.write(path, [_packed(note)], create=True)
    except ExistsError:
        raise HeldError(f"{where} is held by {describe(_noted(bucket, folder, top + 1))}") from None
    # Some servers ignore If-None-Match and overwrite objects, which would be unsafe. So every new lease tests this.
    try:
        bucket.write(path, [_packed({**note, "token": "second"})], create=True)
    except ExistsError:
        pass
    else:
        raise StoreError(
            f"{bucket.address.url} does not support put-if-absent (it ignores If-None-Match), so two writers could "
            "damage each other's objects: set store.url to a store that supports it."
        )
    for old, _ in numbers:
        bucket.remove(f"{folder}/{old:010d}")
    return top + 1


def _numbers(bucket: Bucket, folder: str) -> list[tuple[int, datetime]]:
    found = ((entry.path.rpartition("/")[2], entry.modified) for entry in bucket.children(folder)[1])
    return [(int(number), modified) for number, modified in found if number.isdigit()]


def _noted(bucket: Bucket, folder: str, number: int) -> dict[str, Any]:
    try:
        return read_note(bucket.read(f"{folder}/{number:010d}"))
    except MissingObjectError:
        return {}


def _now(bucket: Bucket) -> datetime:
    """Return the server's time, from the date of an object that is written for this purpose."""
    clock = f"{LEASE_FOLDER}/clock"
    bucket.write(clock, [memoryview(str(time.time_ns()).encode())], create=False)
    return bucket.stat(clock).modified


def _packed(note: dict[str, Any]) -> memoryview:
    return memoryview(json.dumps(note).encode())
