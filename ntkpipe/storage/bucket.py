"""Requests to a bucket of S3, Google Cloud Storage or Azure, repeated where that helps, and counted.

The only file that imports obstore. obstore repeats requests by itself; that is switched off, because it neither counts
repetitions nor knows the answers that matter here: it does not repeat a put-if-absent whose connection broke (it cannot
tell whether the object was stored; `RemoteStore.put` can, by looking), nor 400 RequestTimeout, nor a broken listing in the
middle. What it does well is used: signing, connection pools, time-outs, pages of listings.
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
from ntkpipe.storage.address import Address, parse_address
from ntkpipe.storage.answers import ExistsError, explain, said_by
from ntkpipe.storage.protocol import MissingObjectError
from ntkpipe.storage.retry import RetryPolicy, TemporaryError
from ntkpipe.storage.statistics import PROCESS

_T = TypeVar("_T")

TIMEOUT_VARIABLE = "NTKPIPE_STORE_TIMEOUT_SECONDS"
# Without a byte arriving. A whole request may take ten minutes: 16 MiB tiles over a bad line, several at once.
_SILENCE, _WHOLE = 30.0, timedelta(minutes=10)
_WRITER = "writer"
_PAGE = 1000  # the largest page that S3 returns


@dataclass(frozen=True)
class Entry:
    """One object of a listing.

    Args:
        path: below the store's prefix.
        size: bytes.
        modified: by the server's clock, to the second on S3.
    """

    path: str
    size: int
    modified: datetime


class Bucket:
    """The part of a bucket below a prefix. One per process and URL, see `bucket_at`; safe from many threads."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.counters = PROCESS.counters()
        self.policy = RetryPolicy.from_environment()
        self._client = _connect(address)

    def read(self, path: str, start: int | None = None, stop: int | None = None) -> bytes:
        """The object's bytes `[start:stop]`, or all of them."""
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
        """Store an object in one request; if `create`, only where there is none.

        A put-if-absent that was repeated may meet its own object: an earlier attempt was stored and only the answer got
        lost. A token in the object's metadata tells whose it is; where a server keeps none, the contents decide (equal bytes
        of another writer do no harm).

        Returns:
            True: `parts` are stored.

        Raises:
            ExistsError: if `create` and there is another object.
        """
        import obstore

        attempts, token = 0, uuid.uuid4().hex

        def attempt() -> None:
            nonlocal attempts
            attempts += 1
            mode = "create" if create else "overwrite"
            # obstore consumes a list of buffers without joining them; multipart uploads know no put-if-absent.
            payload: Any = list(parts) or b""
            marked: Any = {_WRITER: token} if create else None
            obstore.put(self._client, path, payload, mode=mode, attributes=marked, use_multipart=False)

        self._request("put", path, attempt, on_exists=lambda: attempts > 1 and self._is_mine(path, token, parts))
        self.counters.done("put", written=sum(part.nbytes for part in parts))
        return True

    def stat(self, path: str) -> Entry:
        """Size and time of an object."""
        import obstore

        return _entry(self._request("size", path, lambda: obstore.head(self._client, path)))

    def walk(self, folder: str) -> Iterator[Entry]:
        """Every object below a folder, in the server's order; broken listings go on behind the last object seen."""
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
        """Names of the folders, and the objects, directly below a folder."""
        import obstore

        found = self._request("list", folder, lambda: obstore.list_with_delimiter(self._client, folder or None))
        names = sorted(prefix.rstrip("/").rpartition("/")[2] for prefix in found["common_prefixes"])
        return names, [_entry(meta) for meta in found["objects"]]

    def remove(self, *paths: str) -> None:
        """Delete objects, at least one; it is fine if there are none."""
        import obstore

        try:
            self._request("delete", paths[0], lambda: obstore.delete(self._client, list(paths)))
        except MissingObjectError:  # not from S3, which does not mind
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
            raise TemporaryError("conflict", f"{path} was there and is gone") from None

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
    """The bucket of a URL. Credentials and endpoint are read from the environment when a process first asks.

    Raises:
        ConfigError: for a bad URL, unusable settings in the environment, or where obstore is not installed.
    """
    with _lock:
        if url not in _buckets:
            _buckets[url] = Bucket(parse_address(url))
        return _buckets[url]


def forget_buckets() -> None:
    """Drop all connections, so that the environment is read anew."""
    with _lock:
        _buckets.clear()


def _connect(address: Address) -> Any:
    try:
        from obstore.store import AzureStore, GCSStore, S3Store
    except ImportError as error:
        raise ConfigError(f"store.url={address.url} needs the package obstore: pip install 'ntkpipe[cloud]'") from error
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
    except Exception as error:  # obstore's own classes, for settings in the environment that it cannot use
        raise StoreError(f"cannot open {address.url}: {said_by(str(error))}") from error


def _endpoints(scheme: str) -> list[str]:
    """Addresses of servers in the environment. The client library panics at one that is none, and so it does at a region's name.

    Raises:
        ConfigError: naming the variable; its value may hold a password and is not repeated.
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
            raise ConfigError(f"{name} is no address of a server: give it as in http://host:9000")
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION") if scheme == "s3" else ():
        if not re.fullmatch(r"[A-Za-z0-9-]*", os.environ.get(name, "")):
            raise ConfigError(f"{name}={os.environ[name]} is no region: give its name, as in us-east-1")
    return list(found.values())


def _silence() -> float:
    stated = os.environ.get(TIMEOUT_VARIABLE)
    try:
        seconds = _SILENCE if stated is None else float(stated)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e6:
        raise ConfigError(f"{TIMEOUT_VARIABLE}={stated!r} is no number of seconds: give one, as in 30")
    return seconds
