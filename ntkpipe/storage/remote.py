"""Stores objects in a bucket of S3, Google Cloud Storage or Azure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ntkpipe.storage.address import parse_address
from ntkpipe.storage.answers import ExistsError
from ntkpipe.storage.bucket import Bucket, bucket_at
from ntkpipe.storage.foreign import is_foreign_key
from ntkpipe.storage.lease import held_in_bucket, hold_in_bucket
from ntkpipe.storage.protocol import LEASE_FOLDER, Buffer, Lease, MissingObjectError, as_parts, check_key, check_span
from ntkpipe.storage.statistics import Statistics


@dataclass(frozen=True, init=False)
class RemoteStore:
    """An `ObjectStore` at `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or `az://CONTAINER/PREFIX`.

    The handle holds only the URL. Each process takes credentials and endpoint from its own environment.

    Raises:
        ConfigError: if the URL is none of these, or holds credentials.
    """

    url: str

    def __init__(self, url: str) -> None:
        object.__setattr__(self, "url", parse_address(url).url)

    @property
    def _bucket(self) -> Bucket:
        return bucket_at(self.url)

    def get(self, key: str) -> bytes:
        """Return the object's bytes."""
        return self._bucket.read(check_key(key))

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Return the object's bytes `[start:stop]`."""
        check_span(start, stop)
        if start == stop:
            self.size(key)
            return b""
        return self._bucket.read(check_key(key), start, stop)

    def put(self, key: str, data: Buffer | Sequence[Buffer], *, overwrite: bool = False) -> bool:
        """Store an object atomically."""
        try:
            return self._bucket.write(check_key(key), as_parts(data), create=not overwrite)
        except ExistsError:
            return False

    def exists(self, key: str) -> bool:
        """Return whether the object exists."""
        try:
            self._bucket.stat(check_key(key))
        except MissingObjectError:
            return False
        return True

    def size(self, key: str) -> int:
        """Return the size of the object in bytes."""
        return self._bucket.stat(check_key(key)).size

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys that start with `prefix`, sorted."""
        return (key for key, _ in self.sizes(prefix))

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Yield the keys that start with `prefix`, sorted, and the size of each object in bytes."""
        # The keys are sorted and filtered here, because not all servers sort, and the client lists only whole folders.
        found = self._bucket.walk(prefix.rpartition("/")[0])
        kept = ((e.path, e.size) for e in found if e.path.startswith(prefix))
        yield from sorted(
            (path, size) for path, size in kept if not path.startswith(f"{LEASE_FOLDER}/") and not is_foreign_key(path)
        )

    def folders(self, prefix: str = "") -> list[str]:
        """Return the names of the folders directly below `prefix`, sorted."""
        start = prefix.rstrip("/") + "/" if prefix else ""
        names = self._bucket.children(prefix.rstrip("/"))[0]
        return [name for name in names if start + name != LEASE_FOLDER and not is_foreign_key(start + name)]

    def foreign(self) -> Sequence[str]:
        """Return the keys of other programs' objects, sorted."""
        return sorted(e.path for e in self._bucket.walk("") if is_foreign_key(e.path))

    def delete(self, key: str) -> None:
        """Delete the object if it exists."""
        self._bucket.remove(check_key(key))

    def delete_all(self, keys: Iterable[str]) -> None:
        """Delete all of these objects that exist."""
        remaining = iter(keys)
        while batch := [check_key(key) for key in islice(remaining, 1000)]:
            self._bucket.remove(*batch)

    def lease(self, name: str, *, holder: dict[str, Any] | str) -> AbstractContextManager[Lease]:
        """Hold `name` until the block ends, or three beats after the process dies."""
        return hold_in_bucket(self._bucket, check_key(name), holder)

    def holder(self, name: str) -> str | None:
        """Return a text on the holder of `name`, or None; writes nothing."""
        return held_in_bucket(self._bucket, check_key(name))

    def free_bytes(self) -> int | None:
        """Return None, because the limit of a bucket is unknown."""
        return None

    def sweep(self, prefix: str = "", *, older_than: float = 3600.0) -> Sequence[str]:
        """Do nothing, because a bucket has no leftovers.

        An object is stored in one request, so killed writers leave no partial objects. A bucket has no empty folders.
        """
        return []

    def statistics(self) -> Statistics:
        """Return the requests of this process."""
        return self._bucket.counters.snapshot()
