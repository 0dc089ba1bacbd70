"""Leases: who holds one, the beat that shows that the holder lives, and numbered leases in buckets.

Leases save two runs the same work, and nothing else: put-if-absent is what keeps stored objects right.
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
"""A lease whose holder has missed so many beats may be taken over."""

_CLOCK_GRAIN = timedelta(seconds=1)  # S3 tells times to the second


def beat_seconds() -> float:
    """Seconds between beats, 10 unless `NTKPIPE_LEASE_BEAT_SECONDS` says otherwise."""
    stated = os.environ.get(BEAT_VARIABLE, "10")
    try:
        seconds = float(stated)
    except ValueError:
        seconds = 0.0
    if not 0.01 <= seconds <= 3600:
        raise ConfigError(
            f"{BEAT_VARIABLE}={stated!r} is no number of seconds between 0.01 and 3600: give one, as in 10"
        )
    return seconds


@dataclass
class HeldLease:
    """See `Lease`."""

    name: str
    number: int = 0
    _lost: str | None = None

    @property
    def lost(self) -> bool:
        """True once another holder was seen."""
        return self._lost is not None

    def check(self) -> None:
        """`HeldError` if another process has taken the lease over."""
        if self._lost is not None:
            raise HeldError(
                f"{self.name} was taken over by {self._lost} after this process had missed {MISSED_BEATS} beats. Nothing "
                "stored is damaged: stop one of the two runs."
            )

    def lose(self, to: str) -> None:
        """Note who holds it now."""
        self._lost = to


def new_note(holder: dict[str, Any] | str) -> dict[str, Any]:
    """What is written into a lease: who, where, since when, and a token that no other holder has."""
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
    """Of this running kernel: processes that share it share their locks, whatever their containers call the host."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:  # no Linux
        return socket.gethostname()


def read_note(data: bytes) -> dict[str, Any]:
    """The note; empty if there is none, or if it is damaged or caught half written."""
    try:
        note = json.loads(data)
    except ValueError:
        return {}
    return note if isinstance(note, dict) else {}


def describe(note: dict[str, Any]) -> str:
    """The holder as a phrase."""
    said = {key: value for key, value in note.items() if key not in ("boot", "beat", "token", "free")}
    try:
        who = f"process {said.pop('pid')} on {said.pop('host')} since {said.pop('since')}"
    except KeyError:
        return "another process. Wait for it to end, or stop it."
    doing = ", ".join(f"{key} {value}" if key != "what" else str(value) for key, value in said.items())
    return f"{who}{f' ({doing})' if doing else ''}. Wait for it to end, or stop it."


def is_late(note: dict[str, Any], modified: datetime, now: datetime) -> bool:
    """True if the holder missed its beats. Both times are of one clock: the store's."""
    return now - modified > _patience(note)


def still_beats(note: dict[str, Any], modified: Callable[[], datetime | None]) -> bool:
    """Whether the holder touches its lease while this waits for the beats that it may miss; compares no clocks.

    Args:
        note: of the holder.
        modified: looks when it was touched; None if it is gone.
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
    """Call `beat` regularly in a thread of its own until the block ends, or until it returns who else holds the lease."""
    stop = threading.Event()
    every = beat_seconds()

    def run() -> None:
        while not stop.wait(every):
            try:
                other = beat()
            except StoreError:
                continue  # the store is away: nobody else can take the lease over there either
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
    """Hold a lease in a bucket: objects `.leases/<name>/<number>`, of which the highest number counts.

    Whoever finds it free, or late by three beats, puts the next number if that is absent: of several one succeeds. A holder
    beats by rewriting its own object and looks whether there is a higher number: then it has lost. That asks for nothing
    but put-if-absent, which every store here must have anyway: conditional updates (by etag) are not there on all of
    them, and one that was stored although its answer got lost looks like a lost lease. Numbers only grow, so that one
    can serve as a fencing token.
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
        # The number stays, marked as free: the next holder counts on from it.
        with contextlib.suppress(StoreError):
            bucket.write(path, [_packed({**note, "free": True})], create=False)


def held_in_bucket(bucket: Bucket, name: str) -> str | None:
    """Who holds a lease in a bucket, as `hold_in_bucket` would say; None if nobody does. Nothing is written."""
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
    # Some servers ignore If-None-Match and overwrite: nothing would be safe there, so the first lease of a run finds out.
    try:
        bucket.write(path, [_packed({**note, "token": "second"})], create=True)
    except ExistsError:
        pass
    else:
        raise StoreError(
            f"{bucket.address.url} has no put-if-absent: it ignores If-None-Match, so that two writers could damage each "
            "other's objects. Set store.url to a store that has it."
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
    """The server's time, as it dates objects."""
    clock = f"{LEASE_FOLDER}/clock"
    bucket.write(clock, [memoryview(str(time.time_ns()).encode())], create=False)
    return bucket.stat(clock).modified


def _packed(note: dict[str, Any]) -> memoryview:
    return memoryview(json.dumps(note).encode())
