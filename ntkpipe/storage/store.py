"""From a URL to the store behind it."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from ntkpipe.errors import ConfigError
from ntkpipe.storage.address import refuse_secrets
from ntkpipe.storage.local import LocalStore
from ntkpipe.storage.memory import MemoryStore
from ntkpipe.storage.protocol import MissingObjectError, ObjectStore
from ntkpipe.storage.remote import RemoteStore

__all__ = ["MissingObjectError", "ObjectStore", "open_store"]


def open_store(url: str) -> ObjectStore:
    """The store at `url`. Nothing is asked of a server or made on a disk before the first use.

    Args:
        url: a folder, as a path or as `file://` URL, on a disk or a file system that all nodes share;
            `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or `az://CONTAINER/PREFIX`, with credentials and endpoint in the
            environment; or `memory://NAME`, in this process alone.

    Raises:
        ConfigError: for anything else, if the path is not a folder, or if the URL holds credentials.
    """
    refuse_secrets(url)
    scheme, separator, rest = url.partition("://")
    if not separator:
        return LocalStore(url)
    if scheme == "file":
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise ConfigError(f"store.url={url}: a file URL has three slashes, as in file:///data/store")
        return LocalStore(unquote(parts.path))
    if scheme == "memory":
        return MemoryStore(rest)
    return RemoteStore(url)
