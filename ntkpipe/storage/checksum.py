"""CRC-32C (Castagnoli), the checksum of Zarr's `crc32c` codec, and JSON that carries a hash of itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, cast

import google_crc32c
import numpy as np

from ntkpipe.storage.protocol import Buffer

_SEAL = "sha256"


def crc32c(*parts: Buffer) -> int:
    """Compute the CRC-32C of the concatenation of `parts`, without copying or joining them.

    Args:
        parts: C-contiguous buffers of any item type.

    Returns:
        The checksum, `0 <= crc < 2**32`.
    """
    crc = 0
    for part in parts:
        # google_crc32c refuses memoryviews but takes arrays without a copy, and wrapping costs nothing. The checksum
        # then runs at 14 GB/s, compared with 1 GB/s for a tobytes() copy.
        view = memoryview(cast(Any, part))  # numpy declares the buffer protocol only since Python 3.12
        if view.nbytes:
            crc = google_crc32c.extend(crc, cast(bytes, np.frombuffer(view, np.uint8)))
    return crc


def digest(value: Any) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a JSON-ready value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def content_hash(data: bytes) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of bytes, which name stored content."""
    return hashlib.sha256(data).hexdigest()[:16]


def sealed(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with a hash of itself under `sha256`."""
    return {**body, _SEAL: _hash(body)}


def unsealed(stored: Any) -> dict[str, Any] | None:
    """Return a sealed object without its seal; None if it is not a JSON object, or was changed."""
    if not isinstance(stored, dict) or stored.get(_SEAL) != _hash(
        body := {k: v for k, v in stored.items() if k != _SEAL}
    ):
        return None
    return body


def _hash(body: Mapping[str, Any]) -> str:
    # The hash covers the form in which the object is read, where keys are text and tuples are lists.
    canonical = json.dumps(json.loads(json.dumps(dict(body))), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
