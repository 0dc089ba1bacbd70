"""Small JSON records that carry their own checksum. Receipts and manifests use them."""

from __future__ import annotations

import json
from typing import Any

from ntkpipe.errors import CorruptionError
from ntkpipe.storage.checksum import crc32c


def seal(content: dict[str, Any]) -> bytes:
    """Return `content` as readable JSON text with a field `crc32c`, which is the checksum of the other fields."""
    bare = json.dumps(content, sort_keys=True, allow_nan=False).encode()
    return (json.dumps({**content, "crc32c": f"{crc32c(bare):08x}"}, sort_keys=True, indent=1) + "\n").encode()


def unseal(data: bytes, name: str) -> dict[str, Any]:
    """Return the content of a sealed record.

    Raises:
        CorruptionError: if any byte differs from the result of `seal`. The text contains `name`.
    """
    try:
        content = json.loads(data)
        del content["crc32c"]
        if seal(content) == data:
            return content
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise CorruptionError(f"the record {name} is damaged or was edited by hand")
