"""Where bytes are kept: the protocol of object stores, and what their keys and buffers may be."""

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
"""Bytes to be stored; arrays must be C-contiguous."""

PARTIAL_SUFFIX = ".partial"
LEASE_FOLDER = ".leases"


class MissingObjectError(StoreError, KeyError):
    """There is no object under this key."""

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0]) if self.args else ""


class Lease(Protocol):
    """What `ObjectStore.lease` gives to its block."""

    @property
    def number(self) -> int:
        """Grows from one holder to the next on buckets (a fencing token); 0 elsewhere."""
        ...

    @property
    def lost(self) -> bool:
        """True once this process knows that another one has taken the lease over, at the latest one beat after it did."""
        ...

    def check(self) -> None:
        """`HeldError` if it is lost; cheap."""
        ...


@runtime_checkable
class ObjectStore(Protocol):
    """Immutable objects under `/`-separated keys, and leases that die with their holder.

    A handle is cheap to pickle: workers receive it and read or write for themselves. Objects appear whole or not at
    all: a reader never sees half of one, whatever is killed when.

    Durability: nothing is flushed to the device object by object (on a local disk that would cost more than computing
    many of the tiles). After a power cut an object may therefore be torn or empty; whoever reads one must check
    its content, as `ntkpipe.tiles` does with checksums and receipts.
    """

    @property
    def url(self) -> str:
        """What `open_store` turns into this store."""
        ...

    def get(self, key: str) -> bytes:
        """The object's bytes.

        Raises:
            MissingObjectError: if there is none.
        """
        ...

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """The object's bytes `[start:stop]`, fewer where it ends before `stop`.

        Args:
            key: of the object.
            start: `>= 0`, within the object.
            stop: `>= start`.

        Raises:
            MissingObjectError: if there is none.
        """
        ...

    def put(self, key: str, data: Buffer | Sequence[Buffer], *, overwrite: bool = False) -> bool:
        """Store `data` (parts are written one after the other, never joined in memory) atomically.

        Args:
            key: of the object.
            data: one buffer or several.
            overwrite: replace what is there. Otherwise what is there stays: of many writers exactly one wins.

        Returns:
            True if this call stored the object, False if it was there before.

        Raises:
            ResourceError: if the store is full.
        """
        ...

    def exists(self, key: str) -> bool:
        """True if there is an object under `key`."""
        ...

    def size(self, key: str) -> int:
        """Bytes of the object; `MissingObjectError` if there is none."""
        ...

    def list(self, prefix: str = "") -> Iterator[str]:
        """Keys that start with `prefix`, sorted; neither unfinished writes nor leases nor foreign files are among them."""
        ...

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """As `list`, each with its bytes: one look at a bucket's listing instead of one per object."""
        ...

    def folders(self, prefix: str = "") -> list[str]:
        """Names of the folders directly below the folder `prefix`, sorted; foreign ones are left out."""
        ...

    def foreign(self) -> Sequence[str]:
        """Names of files and folders that other programs have left, see `is_foreign_key`; sorted, each with its path."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object; it is fine if there is none."""
        ...

    def delete_all(self, keys: Iterable[str]) -> None:
        """As `delete` for each: a thousand per request where the store can. If interrupted, some are gone."""
        ...

    def lease(self, name: str, *, holder: dict[str, Any] | str) -> AbstractContextManager[Lease]:
        """Hold `name` for the duration of a `with` block, or until this process dies.

        On a local disk a dead process frees its leases at once; on a bucket, or another node of a shared file system,
        after three missed beats of ten seconds.

        Args:
            name: of the lease, a key of its own kind.
            holder: what the holder is doing, told to whoever is refused; pid, host and time are added.

        Raises:
            HeldError: if a living process holds it; the text says who, where and since when.
        """
        ...

    def holder(self, name: str) -> str | None:
        """Who holds `name`, in the words of the `HeldError` that a second holder gets; None if nobody does.

        Nothing is written, so that it answers where one may only read. A holder on another node, and any in a bucket, is
        known by its beat: three of them are waited for where the last holder did not end in good order.
        """
        ...

    def free_bytes(self) -> int | None:
        """Bytes that can still be stored; None where nobody knows."""
        ...

    def sweep(self, prefix: str = "", *, older_than: float = 3600.0) -> Sequence[str]:
        """Remove what killed writers left under `prefix`, and empty folders.

        Args:
            prefix: as in `list`.
            older_than: seconds; younger leftovers may belong to a living writer and stay.

        Returns:
            Names of the leftovers that were removed.
        """
        ...

    def statistics(self) -> Statistics:
        """Requests of this process to a server, repetitions and bytes; empty where there is no server."""
        ...


def check_span(start: int, stop: int) -> None:
    """`ValueError` unless `0 <= start <= stop`."""
    if not 0 <= start <= stop:
        raise ValueError(f"no bytes [{start}:{stop}]: a range needs 0 <= start <= stop")


def check_key(key: str) -> str:
    """Return `key` if it may name an object.

    Raises:
        ValueError: if it is absolute, not normalised, leaves the store, belongs to the store itself, or looks like a file of
            another program.
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
            f"{key!r} is no object key: it must be relative, normalised, neither under {LEASE_FOLDER}/ nor end in "
            f"{PARTIAL_SUFFIX}, and without hidden names, spaces and any of ~#$@()"
        )
    return key


def as_parts(data: Buffer | Sequence[Buffer]) -> list[memoryview]:
    """The buffers of `put` as flat byte views, without copies; empty ones are dropped.

    Raises:
        ValueError: if one is not C-contiguous.
    """
    buffers = [data] if isinstance(data, (bytes, bytearray, memoryview, np.ndarray)) else data
    views = [memoryview(cast(Any, b)) for b in buffers]  # numpy declares __buffer__ from Python 3.12 on only
    if not all(v.c_contiguous for v in views):
        raise ValueError("only C-contiguous buffers can be stored without a copy")
    return [v.cast("B") for v in views if v.nbytes]
