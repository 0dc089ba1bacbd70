"""The protocol of object stores, with the rules for keys and buffers."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np

from ntkpipe.errors import StoreError
from ntkpipe.storage.foreign import is_foreign_key
from ntkpipe.storage.statistics import Statistics

Buffer = bytes | bytearray | memoryview | np.ndarray
"""Bytes to store; arrays must be C-contiguous."""

PARTIAL_SUFFIX = ".partial"
LEASE_FOLDER = ".leases"


class MissingObjectError(StoreError, KeyError):
    """No object exists under this key."""

    def __str__(self) -> str:  # KeyError would print the repr of the text
        return str(self.args[0]) if self.args else ""


class Lease(Protocol):
    """The lease that `ObjectStore.lease` gives to its `with` block."""

    @property
    def number(self) -> int:
        """A fencing token that grows with every holder of a lease in a bucket; 0 elsewhere."""
        ...

    @property
    def lost(self) -> bool:
        """True when this process knows that another process took the lease over, at most one beat after it did."""
        ...

    def check(self) -> None:
        """Raise `HeldError` if the lease is lost. The check is cheap."""
        ...


@runtime_checkable
class ObjectStore(Protocol):
    """Immutable objects under `/`-separated keys, and leases that end with their holder.

    A handle is cheap to pickle, so workers receive it and read or write by themselves. An object appears whole or not
    at all. No reader ever sees part of an object, even if a process is killed.

    Objects are not flushed to the device one by one, because on a local disk that would cost more than computing many
    tiles. After a power cut an object may therefore be incomplete or empty. Readers must check the content, as
    `ntkpipe.tiles` does with checksums and receipts.
    """

    @property
    def url(self) -> str:
        """The URL that `open_store` turns into this store."""
        ...

    def get(self, key: str) -> bytes:
        """Return the object's bytes.

        Raises:
            MissingObjectError: if there is no such object.
        """
        ...

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Return the object's bytes `[start:stop]`, or fewer if it ends before `stop`.

        Args:
            key: key of the object.
            start: first byte, `>= 0` and within the object.
            stop: end of the range in bytes, `>= start`.

        Raises:
            MissingObjectError: if there is no such object.
        """
        ...

    def put(self, key: str, data: Buffer | Sequence[Buffer], *, overwrite: bool = False) -> bool:
        """Store an object atomically. Several buffers are written one after the other and never joined in memory.

        Args:
            key: key of the object.
            data: one buffer or several.
            overwrite: replace an existing object. Otherwise an existing object stays, and exactly one of many writers
                succeeds.

        Returns:
            True if this call stored the object, False if it existed before.

        Raises:
            ResourceError: if the store is full.
        """
        ...

    def exists(self, key: str) -> bool:
        """Return whether there is an object under `key`."""
        ...

    def size(self, key: str) -> int:
        """Return the size of the object in bytes.

        Raises:
            MissingObjectError: if there is no such object.
        """
        ...

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys that start with `prefix`, sorted, without unfinished writes, leases and foreign files."""
        ...

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Yield the keys of `list` with their sizes in bytes, which a bucket's listing gives without more requests."""
        ...

    def folders(self, prefix: str = "") -> list[str]:
        """Return the names of the folders directly below the folder `prefix`, sorted, without foreign folders."""
        ...

    def foreign(self) -> Sequence[str]:
        """Return the paths of files and folders of other programs, sorted. `is_foreign_key` recognises them."""
        ...

    def delete(self, key: str) -> None:
        """Delete the object. A missing object is not an error."""
        ...

    def delete_all(self, keys: Iterable[str]) -> None:
        """Delete several objects, up to a thousand per request. After an interruption some may remain."""
        ...

    def lease(self, name: str, *, holder: dict[str, Any] | str) -> AbstractContextManager[Lease]:
        """Hold `name` for the duration of a `with` block, or until this process dies.

        On a local disk a dead process frees its leases at once. In a bucket, or for another node of a shared file
        system, a lease becomes free after three missed beats of ten seconds.

        Args:
            name: name of the lease, in the form of a key.
            holder: what the holder is doing, for the message to refused processes; pid, host and time are added.

        Raises:
            HeldError: if a living process holds the lease. The text says who, where and since when.
        """
        ...

    def holder(self, name: str) -> str | None:
        """Return the text of the `HeldError` that a second holder of `name` would get; None if `name` is free.

        Nothing is written, so read access is enough. A holder in a bucket or on another node is recognised by its beat.
        If the last holder did not release its lease, the call waits for up to three beats.
        """
        ...

    def free_bytes(self) -> int | None:
        """Return the number of free bytes; None if unknown."""
        ...

    def sweep(self, prefix: str = "", *, older_than: float = 3600.0) -> Sequence[str]:
        """Remove leftovers of killed writers under `prefix`, and empty folders.

        Args:
            prefix: start of the keys, as in `list`.
            older_than: least age in seconds. Younger leftovers stay, because they may belong to a living writer.

        Returns:
            Names of the removed leftovers, sorted.
        """
        ...

    def statistics(self) -> Statistics:
        """Return requests, repetitions and bytes of this process; empty without a server."""
        ...


def check_span(start: int, stop: int) -> None:
    """Raise `ValueError` unless `0 <= start <= stop`."""
    if not 0 <= start <= stop:
        raise ValueError(f"no bytes [{start}:{stop}]: a range needs 0 <= start <= stop")


def check_key(key: str) -> str:
    """Return `key` if it may name an object.

    Raises:
        ValueError: if the key is absolute, not normalised, leaves the store, belongs to the store itself, or looks like
            a file of another program.
    """
    parts = key.split("/")
    if (
        not key
        or key != posixpath.normpath(key)
        or key.startswith("/")
        or "\0" in key
        or "\\" in key
        or parts[0] in ("..", ".", LEASE_FOLDER)
        or parts[-1].endswith(PARTIAL_SUFFIX)
        or is_foreign_key(key)
    ):
        raise ValueError(
            f"{key!r} is not an object key: it must be relative and normalised, must not be under {LEASE_FOLDER}/ or "
            f"end in {PARTIAL_SUFFIX}, and must not have hidden names, spaces or any of ~#$@()"
        )
    return key


def as_parts(data: Buffer | Sequence[Buffer]) -> list[memoryview]:
    """Return the buffers of `put` as flat byte views, without copies and without empty buffers.

    Raises:
        ValueError: if a buffer is not C-contiguous.
    """
    buffers = [data] if isinstance(data, (bytes, bytearray, memoryview, np.ndarray)) else data
    views = [memoryview(cast(Any, b)) for b in buffers]  # numpy declares __buffer__ only since Python 3.12
    if not all(v.c_contiguous for v in views):
        raise ValueError("only C-contiguous buffers can be stored without a copy")
    return [v.cast("B") for v in views if v.nbytes]
