"""From a URL to the store behind it."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from ntkpipe.errors import ConfigError
from ntkpipe.storage.local import LocalStore
from ntkpipe.storage.memory import MemoryStore
from ntkpipe.storage.protocol import MissingObjectError, ObjectStore

__all__ = ["MissingObjectError", "ObjectStore", "open_store"]


def open_store(url: str) -> ObjectStore:
    """The store at `url`: a folder, given as a path or as `file://` URL. It is made on the first write.

    Raises:
        ConfigError: for any other scheme, or if the path is not a folder.
    """
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
    raise ConfigError(
        f"store.url={url}: this version stores on file systems only. Give a folder that all workers can reach."
    )
