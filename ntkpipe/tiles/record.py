"""Small JSON records that carry their own checksum: receipts and manifests."""

from __future__ import annotations

import json
from typing import Any

from ntkpipe.errors import CorruptionError
from ntkpipe.storage.checksum import crc32c


def seal(content: dict[str, Any]) -> bytes:
    """`content` as JSON text for people and programs, with a field `crc32c` over the rest."""
    bare = json.dumps(content, sort_keys=True, allow_nan=False).encode()
    return (json.dumps({**content, "crc32c": f"{crc32c(bare):08x}"}, sort_keys=True, indent=1) + "\n").encode()


def unseal(data: bytes, name: str) -> dict[str, Any]:
    """The content of a sealed record.

    Raises:
        CorruptionError: if a single byte differs from what `seal` wrote; the text says `name`.
    """
    try:
        content = json.loads(data)
        del content["crc32c"]
        if seal(content) == data:
            return content
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise CorruptionError(f"the record {name} is damaged or was edited by hand")
