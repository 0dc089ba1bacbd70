"""Downloads one file of a known checksum."""

from __future__ import annotations

import hashlib
import logging
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from ntkpipe.errors import ConfigError, DataError
from ntkpipe.storage.replace import replacing

_log = logging.getLogger(__name__)
_BLOCK = 1 << 20
_TIMEOUT = 60.0  # in seconds without a received byte


def fetch(url: str, path: Path, *, md5: str) -> None:
    """Download `url` to `path`. The file appears only when it is complete and its checksum is right.

    Args:
        url: an http or https address.
        path: path of the new file; its folder is created.
        md5: expected checksum, 32 hexadecimal digits.

    Raises:
        ConfigError: if the address is neither http nor https.
        DataError: if the download fails or its checksum differs. No partial file remains.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise ConfigError(f"data.source={url!r} must be an http or https address")
    path.parent.mkdir(parents=True, exist_ok=True)
    _log.info("downloading %s to %s", url, path)
    try:
        with replacing(path) as partial:
            _fetch(url, partial, path.name, md5)
    except (OSError, urllib.error.URLError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{url} cannot be downloaded ({error}): fetch it on a machine with network access, place it at {path} "
            f"and check that its md5 is {md5}, or set data.source to another mirror"
        ) from error


def _fetch(url: str, target: Path, name: str, md5: str) -> None:
    """Download to a new file and check its content."""
    digest = hashlib.md5(usedforsecurity=False)
    # Only http and https addresses reach this line.
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as response, open(target, "xb") as file:  # noqa: S310
        said = time.monotonic()
        done = 0
        while block := response.read(_BLOCK):
            file.write(block)
            digest.update(block)
            done += len(block)
            if time.monotonic() - said > 10:
                _log.info("%s: %.0f MB", name, done / 1e6)
                said = time.monotonic()
    if digest.hexdigest() != md5:
        raise DataError(
            f"{url} gave {done} bytes with md5 {digest.hexdigest()}, expected {md5}: the file differs from the "
            "official one or the transfer failed. Try again, or set data.source to another mirror"
        )
