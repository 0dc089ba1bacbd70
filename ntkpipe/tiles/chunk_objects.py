"""Chunks as stored objects: values, then their CRC-32C in four bytes; put where absent, checked when read."""

from __future__ import annotations

import numpy as np

from ntkpipe.errors import CorruptionError
from ntkpipe.storage.checksum import crc32c
from ntkpipe.storage.protocol import MissingObjectError, ObjectStore
from ntkpipe.tiles.chunk import same_but_rounding
from ntkpipe.tiles.layout import Layout
from ntkpipe.tiles.ledger import REPAIR

Address = tuple[str, str, int, int]
"""Kernel, block, and the row and column of tiles."""


def put_chunk(objects: ObjectStore, layout: Layout, at: Address, chunk: np.ndarray, shape: tuple[int, ...]) -> int:
    """Commit a chunk; the checksum of what is stored in the end, which may be another writer's."""
    key = layout.chunk_key(*at)
    mine = crc32c(chunk)
    parts = [chunk, mine.to_bytes(4, "little")]
    if objects.put(key, parts):
        return mine
    try:
        stored, theirs = get_chunk(objects, layout, at)
    except CorruptionError:
        stored, theirs = None, mine  # torn by a power cut or damaged since
    if stored is not None and (theirs == mine or same_but_rounding(stored, chunk, shape)):
        return theirs
    objects.put(key, parts, overwrite=True)
    return mine


def get_chunk(objects: ObjectStore, layout: Layout, at: Address) -> tuple[np.ndarray, int]:
    """A chunk and its checksum, which agrees with the one stored in its last four bytes.

    Raises:
        CorruptionError: if it is missing or damaged.
    """
    kernel, block, i, j = at
    key = layout.chunk_key(*at)
    what = f"{objects.url}/{key}, tile ({i}, {j}) of {kernel}/{block},"
    try:
        data = objects.get(key)
    except MissingObjectError as error:
        raise CorruptionError(f"{what} has a receipt but is missing. {REPAIR}") from error
    _, chunk, dtype = layout.shapes(block)
    expected = layout.chunk_bytes(block)
    if len(data) != expected:
        raise CorruptionError(f"{what} has {len(data):,} bytes instead of {expected:,}. {REPAIR}")
    values = np.frombuffer(data, dtype, count=int(np.prod(chunk))).reshape(chunk)
    checksum = crc32c(values)
    if checksum != int.from_bytes(data[-4:], "little"):
        raise CorruptionError(f"{what} disagrees with its checksum. {REPAIR}")
    return values.astype(dtype.newbyteorder("="), copy=False), checksum
