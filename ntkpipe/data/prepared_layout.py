"""Layout of prepared images in a store: keys, chunks, checksums, metadata and the manifest."""

from __future__ import annotations

import json
import math
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from ntkpipe.errors import CorruptionError, IncompleteError, StoreError
from ntkpipe.storage.checksum import crc32c, sealed, unsealed
from ntkpipe.storage.store import MissingObjectError, ObjectStore

FORMAT = 1
BLOCKS = ("train", "test")
REMEDY = "run the same command again, which loads the data set and rewrites missing or damaged objects"

# A chunk is large enough that a request costs little compared with its transfer, and small enough that a row block of
# any tile edge reads little extra. It is independent of the tile edge, so that one prepared array serves every grid.
_CHUNK_BYTES = 8 << 20


class ChunkCache:
    """A cache of decoded chunks up to a number of bytes. It drops the least recently used first and is thread-safe."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._entries: OrderedDict[tuple[str, str, int], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, address: tuple[str, str, int]) -> np.ndarray | None:
        """Return the chunk at `(url, key, checksum)`, or None."""
        with self._lock:
            if address in self._entries:
                self._entries.move_to_end(address)
            return self._entries.get(address)

    def put(self, address: tuple[str, str, int], chunk: np.ndarray) -> None:
        """Store a chunk, and drop the least recently used chunks beyond the limit."""
        with self._lock:
            if address in self._entries:
                return
            self._entries[address] = chunk
            self._bytes += chunk.nbytes
            while self._bytes > self._limit and len(self._entries) > 1:
                _, old = self._entries.popitem(last=False)
                self._bytes -= old.nbytes


def prepared_prefix(fingerprint: str, dtype: str) -> str:
    """Return the key prefix of the prepared images of a data set."""
    return f"data/{fingerprint[:16]}-{dtype}"


def parsed(content: bytes) -> Any:
    """Return the parsed JSON, or None if it is invalid."""
    try:
        return json.loads(content)
    except ValueError:
        return None


def block_entry(x: np.ndarray) -> dict[str, Any]:
    """Return shape and rows per chunk of images `(n, h, w, c)`, as the manifest states them."""
    rows = min(max(1, _CHUNK_BYTES // (x[0].size * x.itemsize)), x.shape[0])
    return {"shape": list(x.shape), "chunk_rows": rows}


def chunk_count(entry: dict[str, Any]) -> int:
    """Return the number of chunks of a block."""
    return -(-entry["shape"][0] // entry["chunk_rows"])


def chunk_shape(entry: dict[str, Any]) -> tuple[int, ...]:
    """Return the shape of every stored chunk. The last chunk is padded with NaN."""
    return (entry["chunk_rows"], *entry["shape"][1:])


def chunk_key(prefix: str, block: str, k: int, entry: dict[str, Any]) -> str:
    """Return Zarr's key of chunk `k` along the first axis of a block."""
    return "/".join([prefix, block, "c", str(k), *["0"] * (len(entry["shape"]) - 1)])


def inspect_chunk(
    store: ObjectStore, key: str, shape: tuple[int, ...], dtype: np.dtype, checksum: int | None
) -> tuple[str, bytes | None]:
    """Return the damage of a stored chunk (empty if it is intact) and its bytes (None if it is damaged)."""
    try:
        content = store.get(key)
    except MissingObjectError:
        return "is missing", None
    size = math.prod(shape) * dtype.itemsize
    if len(content) != size + 4:
        return f"has {len(content)} bytes instead of {size + 4}", None
    actual = crc32c(memoryview(content)[:size])
    if actual != int.from_bytes(content[-4:], "little"):
        return "disagrees with its checksum", None
    if checksum is not None and actual != checksum:
        return "disagrees with the manifest", None
    return "", content


def decode_chunk(content: bytes, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return the array of a chunk's bytes, read-only and without a copy."""
    little = np.frombuffer(content, dtype.newbyteorder("<"), count=math.prod(shape)).reshape(shape)
    return little.astype(dtype, copy=False)


def metadata_objects(prefix: str, layout: dict[str, Any], dtype: np.dtype) -> dict[str, bytes]:
    """Return the `zarr.json` objects of the group and its arrays, as zarr itself writes them."""
    written: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(written), zarr_format=3)
    for block in BLOCKS:
        group.create_array(
            block,
            shape=tuple(layout[block]["shape"]),
            chunks=chunk_shape(layout[block]),
            dtype=dtype,
            fill_value=np.nan,
            serializer=BytesCodec(endian="little"),
            compressors=[Crc32cCodec()],
            dimension_names=(
                f"{block}_image",
                *("depth", "height", "width", "channel")[1 - len(layout[block]["shape"]) :],
            ),
        )
    return {f"{prefix}/{name}": content.to_bytes() for name, content in sorted(written.items())}


def seal(body: dict[str, Any]) -> bytes:
    """Return a manifest as JSON with a hash of itself."""
    return json.dumps(sealed(body), sort_keys=True, indent=1).encode()


def read_manifest(store: ObjectStore, prefix: str) -> dict[str, Any]:
    """Read the manifest under `prefix`.

    Raises:
        IncompleteError: if there is none.
        CorruptionError: if it disagrees with its own hash.
        StoreError: if another version of ntkpipe wrote it.
    """
    key = f"{prefix}/manifest.json"
    try:
        content = store.get(key)
    except MissingObjectError as error:
        raise IncompleteError(
            f"{key} is missing in {store.url}, because the points were not written completely: {REMEDY}"
        ) from error
    body = unsealed(parsed(content))
    if body is None:
        raise CorruptionError(f"{key} in {store.url} disagrees with its own hash: {REMEDY}")
    if body["format"] != FORMAT:
        raise StoreError(
            f"{key} in {store.url} has format {body['format']}, this version reads {FORMAT}: use another store.url"
        )
    return body
