"""Opens the store at a URL."""

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
    """Open the store at `url`. No request is sent and no folder is created before the first use.

    Args:
        url: one of the following. A folder, as a path or as a `file://` URL, on a disk or a file system that all nodes
            share. A bucket, as `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or `az://CONTAINER/PREFIX`, with credentials
            and endpoint in the environment. `memory://NAME`, which exists only in this process.

    Raises:
        ConfigError: if the URL is none of these, the path is not a folder, or the URL holds credentials.
    """
    if (folder := local_folder(url)) is not None:
        return LocalStore(folder)
    scheme, _, rest = url.partition("://")
    return MemoryStore(rest) if scheme == "memory" else RemoteStore(url)


def local_folder(url: str) -> str | None:
    """Return the folder of a URL, with `~` expanded; None for a bucket or memory.

    Raises:
        ConfigError: if the URL is empty, is an invalid file URL, or holds credentials.
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
        raise ConfigError(f"store.url={url}: in a file URL, # is written as %23 and ? as %3F; or give a plain path")
    return unquote(parts.path)
