"""Sends requests to a bucket of S3, Google Cloud Storage or Azure, with retries and counts.

This is the only file that imports obstore. It uses obstore's signing, connection pools, time-outs and pages of
listings. It switches obstore's own retries off, because they are not counted and do not cover the cases that matter
here. obstore does not repeat a put-if-absent whose connection broke, because it cannot tell whether the object was
stored; `Bucket.write` can tell by reading it. obstore also does not repeat 400 RequestTimeout, and it does not continue
a listing that broke off.
"""

from __future__ import annotations

import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ntkpipe.errors import ConfigError, StoreError
from ntkpipe.extras import require
from ntkpipe.storage.address import Address, parse_address
from ntkpipe.storage.answers import ExistsError, explain, said_by
from ntkpipe.storage.protocol import MissingObjectError
from ntkpipe.storage.retry import RetryPolicy, TemporaryError
from ntkpipe.storage.statistics import PROCESS

_T = TypeVar("_T")

TIMEOUT_VARIABLE = "NTKPIPE_STORE_TIMEOUT_SECONDS"
# Time-out without any received byte in seconds, and time-out of a whole request. Several tiles of 16 MiB at once over a
# slow line may take minutes.
_SILENCE, _WHOLE = 30.0, timedelta(minutes=10)
_WRITER = "writer"
_PAGE = 1000  # the largest page that S3 returns


@dataclass(frozen=True)
class Entry:
    """One object of a listing.

    Args:
        path: path below the store's prefix.
        size: size in bytes.
        modified: time of the last write by the server's clock, to the second on S3.
    """

    path: str
    size: int
    modified: datetime


class Bucket:
    """The part of a bucket below a prefix. `bucket_at` makes one per process and URL. Many threads may use it."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.counters = PROCESS.counters()
        self.policy = RetryPolicy.from_environment()
        self._client = _connect(address)

    def read(self, path: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Return the object's bytes `[start:stop]`, or all of them."""
        import obstore

        if start is None or stop is None:
            data = self._request("get", path, lambda: obstore.get(self._client, path).bytes().to_bytes())
        else:
            data = self._request(
                "get", path, lambda: obstore.get_range(self._client, path, start=start, end=stop).to_bytes()
            )
        self.counters.done("get", read=len(data))
        return data

    def write(self, path: str, parts: Sequence[memoryview], *, create: bool) -> bool:
        """Store an object in one request. If `create`, store it only if there is no object yet.

        A repeated put-if-absent may find its own object, if an earlier attempt was stored and only the answer got lost.
        A token in the object's metadata identifies the writer. If a server keeps no token, the contents are compared;
        equal bytes of another writer do no harm.

        Returns:
            True, because `parts` are stored.

        Raises:
            ExistsError: if `create` is set and there is an object of another writer.
        """
        import obstore

        attempts, token = 0, uuid.uuid4().hex

        def attempt() -> None:
            nonlocal attempts
            attempts += 1
            mode = "create" if create else "overwrite"
            # obstore consumes a list of buffers without joining them. Multipart uploads do not support put-if-absent.
            payload: Any = list(parts) or b""
            marked: Any = {_WRITER: token} if create else None
            obstore.put(self._client, path, payload, mode=mode, attributes=marked, use_multipart=False)

        self._request("put", path, attempt, on_exists=lambda: attempts > 1 and self._is_mine(path, token, parts))
        self.counters.done("put", written=sum(part.nbytes for part in parts))
        return True

    def stat(self, path: str) -> Entry:
        """Return size and time of an object."""
        import obstore

        return _entry(self._request("size", path, lambda: obstore.head(self._client, path)))

    def walk(self, folder: str) -> Iterator[Entry]:
        """Yield every object below a folder, in the server's order.

        An interrupted listing continues after the last object.
        """
        import obstore

        last: str | None = None
        pages: Any = None

        def page() -> Sequence[Any] | None:
            nonlocal pages
            if pages is None:
                pages = iter(obstore.list(self._client, folder or None, offset=last, chunk_size=_PAGE))
            try:
                return next(pages, None)
            except Exception:
                pages = None
                raise

        while (found := self._request("list", folder, page)) is not None:
            for meta in found:
                last = meta["path"]
                yield _entry(meta)

    def children(self, folder: str) -> tuple[list[str], list[Entry]]:
        """Return the names of the folders directly below a folder, and the objects directly below it."""
        import obstore

        found = self._request("list", folder, lambda: obstore.list_with_delimiter(self._client, folder or None))
        names = sorted(prefix.rstrip("/").rpartition("/")[2] for prefix in found["common_prefixes"])
        return names, [_entry(meta) for meta in found["objects"]]

    def remove(self, *paths: str) -> None:
        """Delete at least one object; missing objects are not an error."""
        import obstore

        try:
            self._request("delete", paths[0], lambda: obstore.delete(self._client, list(paths)))
        except MissingObjectError:  # S3 never reports missing objects here, but other servers do
            for path in paths if len(paths) > 1 else ():
                self.remove(path)

    def _is_mine(self, path: str, token: str, parts: Sequence[memoryview]) -> bool:
        import obstore

        def look() -> Any:
            return obstore.get(self._client, path, options={"head": True}).attributes

        try:
            marked = self._request("size", path, look).get(_WRITER)
            return marked == token if marked is not None else self.read(path) == b"".join(parts)
        except MissingObjectError:  # deleted meanwhile
            raise TemporaryError("conflict", f"{path} was deleted during the operation") from None

    def _request(
        self, kind: str, path: str, call: Callable[[], _T], on_exists: Callable[[], bool] | None = None
    ) -> _T | Any:
        def attempt() -> _T | None:
            self.counters.sent(kind)
            try:
                return call()
            except Exception as error:
                meaning = explain(error, kind, self.address.scheme, self.address.url, path)
                if isinstance(meaning, ExistsError) and on_exists is not None and on_exists():
                    return None  # stored by an earlier attempt
                raise meaning from error

        what = f"{kind} {self.address.url}/{path}"
        return self.policy.run(attempt, what, lambda cause, pause: self.counters.repeats(kind, cause, pause))


def _entry(meta: Any) -> Entry:
    return Entry(meta["path"], meta["size"], meta["last_modified"])


_buckets: dict[str, Bucket] = {}
_lock = threading.Lock()


def bucket_at(url: str) -> Bucket:
    """Return the bucket of a URL. The first call in a process reads credentials and endpoint from the environment.

    Raises:
        ConfigError: if the URL is invalid, or if an endpoint, region or time-out in the environment is invalid.
        MissingExtraError: if obstore is not installed.
        StoreError: if the client refuses other settings in the environment.
    """
    with _lock:
        if url not in _buckets:
            _buckets[url] = Bucket(parse_address(url))
        return _buckets[url]


def forget_buckets() -> None:
    """Drop all connections, so that the environment is read again."""
    with _lock:
        _buckets.clear()


def _connect(address: Address) -> Any:
    require("obstore", f"store.url={address.url}")
    from obstore.store import AzureStore, GCSStore, S3Store

    options: Any = {
        "connect_timeout": timedelta(seconds=10),
        "read_timeout": timedelta(seconds=_silence()),
        "timeout": _WHOLE,
        "user_agent": "ntkpipe",
    }
    if any(url.startswith("http://") for url in _endpoints(address.scheme)):
        options["allow_http"] = True
    kinds: dict[str, Any] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
    try:
        return kinds[address.scheme](
            address.bucket, prefix=address.prefix or None, client_options=options, retry_config={"max_retries": 0}
        )
    except Exception as error:  # obstore raises its own errors for unusable settings in the environment
        raise StoreError(f"cannot open {address.url}: {said_by(str(error))}") from error


def _endpoints(scheme: str) -> list[str]:
    """Return the servers' addresses in the environment. They and the region are checked here.

    The client library would panic on invalid ones.

    Raises:
        ConfigError: if an address or the region is invalid. The text names the variable. It does not repeat an address,
            which may hold a password.
    """
    names = {"s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"), "az": ("AZURE_ENDPOINT",)}
    found = {name: os.environ[name] for name in names.get(scheme, ()) if os.environ.get(name)}
    for name, url in found.items():
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good or not url.isascii() or any(c.isspace() for c in url):
            raise ConfigError(f"{name} is not the address of a server: give one such as http://host:9000")
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION") if scheme == "s3" else ():
        if not re.fullmatch(r"[A-Za-z0-9-]*", os.environ.get(name, "")):
            raise ConfigError(f"{name}={os.environ[name]} is not a region: give its name, such as us-east-1")
    return list(found.values())


def _silence() -> float:
    stated = os.environ.get(TIMEOUT_VARIABLE)
    try:
        seconds = _SILENCE if stated is None else float(stated)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e6:
        raise ConfigError(f"{TIMEOUT_VARIABLE}={stated!r} is not a number of seconds: give one, such as 30")
    return seconds
