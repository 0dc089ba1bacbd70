"""Writes chunks as objects if they are absent, and checks them when it reads them.

An object holds the values and then their CRC-32C in four bytes.
"""

from __future__ import annotations

import numpy as np

from ntkpipe.errors import CorruptionError
from ntkpipe.storage.checksum import crc32c
from ntkpipe.storage.protocol import MissingObjectError, ObjectStore
from ntkpipe.tiles.chunk import same_but_rounding
from ntkpipe.tiles.layout import Layout
from ntkpipe.tiles.ledger import REPAIR

Address = tuple[str, str, int, int]
"""Kernel, block, and row and column of tiles."""


def put_chunk(objects: ObjectStore, layout: Layout, at: Address, chunk: np.ndarray, shape: tuple[int, ...]) -> int:
    """Store a chunk and return the checksum of the stored chunk, which may come from another writer."""
    key = layout.chunk_key(*at)
    mine = crc32c(chunk)
    parts = [chunk, mine.to_bytes(4, "little")]
    if objects.put(key, parts):
        return mine
    try:
        stored, theirs = get_chunk(objects, layout, at)
    except CorruptionError:
        stored, theirs = None, mine  # the stored chunk is damaged, perhaps by a power cut
    if stored is not None and (theirs == mine or same_but_rounding(stored, chunk, shape)):
        return theirs
    objects.put(key, parts, overwrite=True)
    return mine


def get_chunk(objects: ObjectStore, layout: Layout, at: Address) -> tuple[np.ndarray, int]:
    """Read a chunk and its checksum, and compare the checksum with the object's last four bytes.

    Raises:
        CorruptionError: if the object is missing or damaged.
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
