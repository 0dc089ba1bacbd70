"""Parses URLs of object stores into scheme, bucket and prefix, and refuses secrets in them."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from urllib.parse import urlsplit

from ntkpipe.errors import ConfigError

REMOTE_SCHEMES = ("s3", "gs", "az")
_VARIABLES = {"s3": "AWS_*", "gs": "GOOGLE_*", "az": "AZURE_*"}
_ALIASES = {
    "s3a": "s3",
    "s3n": "s3",
    "gcs": "gs",
    "azure": "az",
    "abfs": "az",
    "abfss": "az",
    "wasb": "az",
    "wasbs": "az",
}


@dataclass(frozen=True)
class Address:
    """The address of a remote store.

    Args:
        scheme: `s3`, `gs` or `az`.
        bucket: name of the bucket, or of the container on Azure.
        prefix: prefix of every key, without slashes at its ends; may be empty.
    """

    scheme: str
    bucket: str
    prefix: str

    @property
    def url(self) -> str:
        """The normalised URL."""
        return f"{self.scheme}://{self.bucket}/{self.prefix}".rstrip("/")


def refuse_secrets(url: str) -> None:
    """Refuse a URL that may hold secrets, because it is sent to workers and written to logs and receipts.

    Raises:
        ConfigError: if the URL has a user, password, query or fragment. The text does not repeat them.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() in ("file", "memory"):
        return
    place = rest.partition("/")[0]
    if "@" in place or "?" in rest or "#" in rest:
        name = _VARIABLES.get(_ALIASES.get(scheme.lower(), scheme.lower()), "the provider's")
        raise ConfigError(
            f"store.url={scheme}://...: a store's URL is written to logs and receipts and must hold no credentials, "
            f"queries or fragments. Give {scheme}://BUCKET/PREFIX, and credentials and endpoint in the environment ({name})."
        )


def parse_address(url: str) -> Address:
    """Parse the URL of a remote store.

    Raises:
        ConfigError: if it is not the URL of a remote store, or holds credentials.
    """
    refuse_secrets(url)
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    if scheme in _ALIASES:
        raise ConfigError(f"store.url={url}: write {_ALIASES[scheme]}://{url.partition('://')[2]}")
    if scheme not in REMOTE_SCHEMES:
        raise ConfigError(
            f"store.url={url}: give a folder, file:///FOLDER, s3://BUCKET/PREFIX (any endpoint: AWS_ENDPOINT_URL), "
            "gs://BUCKET/PREFIX or az://CONTAINER/PREFIX"
        )
    prefix = parts.path.strip("/")
    if not parts.netloc or ":" in parts.netloc:
        raise ConfigError(
            f"store.url={url}: a bucket's name belongs after {scheme}://; an endpoint is given in the environment "
            f"({_VARIABLES[scheme]})"
        )
    if prefix and (prefix != posixpath.normpath(prefix) or prefix.startswith("..") or "\\" in prefix or "%" in prefix):
        raise ConfigError(f"store.url={url}: the prefix must be normalised and without % and \\, as in runs/store")
    return Address(scheme, parts.netloc, prefix)
