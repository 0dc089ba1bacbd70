"""From a URL to the store behind it."""

from __future__ import annotations

import os
from urllib.parse import unquote, urlsplit

from ntkpipe.errors import ConfigError
from ntkpipe.storage.address import refuse_secrets
from ntkpipe.storage.local import LocalStore
from ntkpipe.storage.memory import MemoryStore
from ntkpipe.storage.protocol import MissingObjectError, ObjectStore
from ntkpipe.storage.remote import RemoteStore

__all__ = ["MissingObjectError", "ObjectStore", "local_folder", "open_store"]


def open_store(url: str) -> ObjectStore:
    """The store at `url`. Nothing is asked of a server or made on a disk before the first use.

    Args:
        url: a folder, as a path or as `file://` URL, on a disk or a file system that all nodes share;
            `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or `az://CONTAINER/PREFIX`, with credentials and endpoint in the
            environment; or `memory://NAME`, in this process alone.

    Raises:
        ConfigError: for anything else, if the path is not a folder, or if the URL holds credentials.
    """
    if (folder := local_folder(url)) is not None:
        return LocalStore(folder)
    scheme, _, rest = url.partition("://")
    return MemoryStore(rest) if scheme == "memory" else RemoteStore(url)


def local_folder(url: str) -> str | None:
    """The folder that a URL names, as it was given but for `~`; None of a bucket or of memory.

    Raises:
        ConfigError: if it names nothing, or holds credentials.
    """
    refuse_secrets(url)
    scheme, separator, _ = url.partition("://")
    if not url or (scheme == "file" and url.rstrip("/") == "file:"):
        raise ConfigError(f"store.url={url} is empty: give a folder, or a bucket as s3://BUCKET/PREFIX")
    if not separator:
        return os.path.expanduser(url)
    if scheme != "file":
        return None
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise ConfigError(f"store.url={url}: a file URL has three slashes, as in file:///data/store")
    if parts.query or parts.fragment:
        raise ConfigError(f"store.url={url}: in a file URL, # is written as %23 and ? as %3F; or give the path alone")
    return unquote(parts.path)
