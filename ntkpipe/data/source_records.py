"""Records that lead from raw data, as it was, to what a run has made of it: later runs need not read it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ntkpipe.errors import CorruptionError
from ntkpipe.storage.checksum import sealed, unsealed
from ntkpipe.storage.store import ObjectStore


def write_source(store: ObjectStore, key: str, record: Mapping[str, Any]) -> None:
    """Put the record of the source `key`, which says whose it is and carries a hash of itself."""
    store.put(key, json.dumps(sealed({"key": key, **record})).encode(), overwrite=True)


def read_source(store: ObjectStore, key: str) -> dict[str, Any]:
    """The record of the source `key`.

    Raises:
        MissingObjectError: if there is none.
        CorruptionError: if it is damaged, or that of another source.
    """
    try:
        record = unsealed(json.loads(store.get(key)))
    except ValueError:
        record = None
    if record is None or record.get("key") != key:
        raise CorruptionError(f"{key} in {store.url} is damaged: ntkpipe run with the same settings writes it again")
    return record
