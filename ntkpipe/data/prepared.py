"""Prepared images, stored once as row-chunked Zarr arrays. Tasks read only the rows that they need.

The prefix `data/<fingerprint16>-<dtype>/` holds a Zarr v3 group with arrays `train` and `test` `(n, h, w, c)`, chunked
along the first axis. `labels/<hash16>.npz` holds targets, labels and source rows. `manifest.json` is written last and
holds the checksum of every chunk.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ntkpipe.data.dataset import PreparedDataset
from ntkpipe.data.prepared_layout import (
    BLOCKS,
    FORMAT,
    REMEDY,
    ChunkCache,
    block_entry,
    chunk_count,
    chunk_key,
    chunk_shape,
    decode_chunk,
    inspect_chunk,
    metadata_objects,
    parsed,
    prepared_prefix,
    read_manifest,
    seal,
)
from ntkpipe.data.stored_labels import Labels, damaged_labels, read_labels, write_labels
from ntkpipe.errors import CorruptionError, IncompleteError, StoreError
from ntkpipe.storage.checksum import crc32c
from ntkpipe.storage.store import ObjectStore, open_store

# Limit of decoded chunks that a process keeps. It is enough for two row blocks of 4096 CIFAR-10 images in float32.
_CACHE_BYTES = 128 << 20
_chunks = ChunkCache(_CACHE_BYTES)
# Number of chunks that are requested at once, because a bucket takes tens of milliseconds to answer each request.
_READERS = 8


@dataclass(frozen=True)
class PreparedImages:
    """Handle of stored images, a `StoredData`. It is cheap to pickle, and decoded chunks are cached per process.

    Args:
        url: address of the store, as `open_store` takes it.
        prefix: `data/<fingerprint16>-<dtype>`.
        labels_key: key of the object with targets and labels.
    """

    url: str
    prefix: str
    labels_key: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that a Gram matrix depends on, as in `PreparedDataset`."""
        return self._manifest["fingerprint"]

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the images."""
        return np.dtype(self._manifest["dtype"])

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The steps and their statistics, plain JSON."""
        return self._manifest["preprocessing"]

    def shape(self, block: str) -> tuple[int, ...]:
        """Return the shape of `train` or `test`: `(n, h, w, c)`, or `(n, d, h, w, c)` for volumes."""
        return tuple(self._manifest["blocks"][block]["shape"])

    def read(self, block: str, start: int, stop: int) -> np.ndarray:
        """Return rows `start:stop` of `train` or `test`, `(stop - start, h, w, c)`; read-only if they lie in one chunk.

        Raises:
            IndexError: if the range is not within the block.
            CorruptionError: if an object's content disagrees with its checksum. The text names the object.
            IncompleteError: if the images were not written completely.
        """
        entry = self._manifest["blocks"][block]
        n, *shape = entry["shape"]
        if not 0 <= start <= stop <= n:
            raise IndexError(f"rows {start}:{stop} are not within the {n} rows of {self.prefix}/{block}")
        rows = entry["chunk_rows"]
        wanted = range(start // rows, -(-stop // rows) if stop > start else start // rows)
        parts = [
            chunk[max(start - k * rows, 0) : min(stop - k * rows, rows)]
            for k, chunk in zip(wanted, self._all(block, wanted, entry), strict=True)
        ]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty((0, *shape), self.dtype)

    def labels(self) -> Labels:
        """Read targets, labels and source rows.

        Raises:
            CorruptionError: if the stored object is damaged.
            IncompleteError: if it is absent.
        """
        return read_labels(open_store(self.url), self.labels_key)

    def find_damage(self) -> list[str]:
        """Read everything under the prefix and return one line per damaged object."""
        return verify_prepared(open_store(self.url), self.prefix)

    def dataset(self, *, n_train: int | None = None, n_test: int | None = None) -> PreparedDataset:
        """Return the whole data set as `load_dataset` returns it, with all images in memory.

        Args:
            n_train: number of training rows in use; None means all.
            n_test: number of test rows in use; None means all.
        """
        labels = self.labels()
        images = {block: self.read(block, 0, self.shape(block)[0]) for block in BLOCKS}
        return PreparedDataset(
            x_train=images["train"],
            x_test=images["test"],
            **vars(labels),
            n_train=self.shape("train")[0] if n_train is None else n_train,
            n_test=self.shape("test")[0] if n_test is None else n_test,
            fingerprint=self.fingerprint,
            preprocessing=self.preprocessing,
        )

    @property
    def _manifest(self) -> dict[str, Any]:
        return _cached_manifest(self.url, self.prefix)

    def _all(self, block: str, wanted: Sequence[int], entry: dict[str, Any]) -> list[np.ndarray]:
        """Return the chunks of a range. Chunks that are not cached are requested together."""

        def one(k: int) -> np.ndarray:
            return self._chunk(block, k, entry)

        if sum(_chunks.get(self._address(block, k, entry)) is None for k in wanted) < 2:
            return [one(k) for k in wanted]
        with ThreadPoolExecutor(min(len(wanted), _READERS), thread_name_prefix="image-chunks") as pool:
            return list(pool.map(one, wanted))

    def _address(self, block: str, k: int, entry: dict[str, Any]) -> tuple[str, str, int]:
        # The checksum is part of the key, so that a chunk rewritten after damage does not come from the cache.
        return self.url, chunk_key(self.prefix, block, k, entry), entry["checksums"][k]

    def _chunk(self, block: str, k: int, entry: dict[str, Any]) -> np.ndarray:
        chunk = _chunks.get(self._address(block, k, entry))
        if chunk is not None:
            return chunk
        key = chunk_key(self.prefix, block, k, entry)
        store = open_store(self.url)
        problem, content = inspect_chunk(store, key, chunk_shape(entry), self.dtype, entry["checksums"][k])
        if content is None:
            # A long-lived worker may hold a manifest from before a repair, with another checksum, so it is read again.
            _cached_manifest.cache_clear()
            entry = self._manifest["blocks"][block]
            problem, content = inspect_chunk(store, key, chunk_shape(entry), self.dtype, entry["checksums"][k])
        if content is None:
            raise CorruptionError(f"{key} in {self.url} {problem}: {REMEDY}")
        chunk = decode_chunk(content, chunk_shape(entry), self.dtype)
        _chunks.put(self._address(block, k, entry), chunk)
        return chunk


def write_prepared(dataset: PreparedDataset, store: ObjectStore) -> PreparedImages:
    """Store a data set's images and labels, unless they exist. Damaged or missing chunks are rewritten.

    Any number of processes may do this at once: the first commit stays, and the manifest has its checksums.

    Args:
        dataset: the data set to store.
        store: the store to write to.

    Returns:
        The handle from which tasks read.

    Raises:
        StoreError: if the prefix holds the images of another data set (a collision of hashes, or a manipulated store).
    """
    images = {"train": dataset.x_train, "test": dataset.x_test}
    dtype = dataset.x_train.dtype
    prefix = prepared_prefix(dataset.fingerprint, dtype.name)
    try:
        old = read_manifest(store, prefix)
    except (IncompleteError, CorruptionError):
        old = None
    layout = {block: block_entry(x) for block, x in images.items()}
    if old is not None:
        same = old["fingerprint"] == dataset.fingerprint
        for block in BLOCKS:
            same = same and all(old["blocks"][block][k] == layout[block][k] for k in ("shape", "chunk_rows"))
        if not same:
            raise StoreError(
                f"{prefix} in {store.url} holds points of {old['fingerprint']}, not "
                f"{dataset.fingerprint}, or of another layout: set store.url to another folder, or remove this one "
                "with `ntkpipe clean`"
            )
    for key, content in metadata_objects(prefix, layout, dtype).items():
        _put_exactly(store, key, content)
    for block, x in images.items():
        entry = layout[block]
        known = old["blocks"][block]["checksums"] if old is not None else [None] * chunk_count(entry)
        entry["checksums"] = [
            _write_chunk(store, prefix, block, k, x, entry, known[k]) for k in range(chunk_count(entry))
        ]
    labels_key = write_labels(dataset, store, prefix)
    body = {
        "format": FORMAT,
        "fingerprint": dataset.fingerprint,
        "dtype": dtype.name,
        "preprocessing": dataset.preprocessing if old is None else old["preprocessing"],
        "blocks": layout,
    }
    if old is None or old["blocks"] != layout:
        # An existing manifest is damaged or lists checksums of replaced chunks, so it is overwritten.
        store.put(f"{prefix}/manifest.json", seal(body), overwrite=True)
        _cached_manifest.cache_clear()
    return PreparedImages(store.url, prefix, labels_key)


def verify_prepared(store: ObjectStore, prefix: str) -> list[str]:
    """Read everything under `prefix` and return one line per damaged object."""
    try:
        manifest = read_manifest(store, prefix)
    except (IncompleteError, CorruptionError) as error:
        return [str(error)]
    problems = []
    dtype = np.dtype(manifest["dtype"])
    for key, content in metadata_objects(prefix, manifest["blocks"], dtype).items():
        if not store.exists(key):
            problems.append(f"{key} is missing")
        elif store.get(key) != content and parsed(store.get(key)) != json.loads(content):
            problems.append(f"{key} differs from the metadata that was written")
    for block in BLOCKS:
        entry = manifest["blocks"][block]
        for k, checksum in enumerate(entry["checksums"]):
            key = chunk_key(prefix, block, k, entry)
            problem, _ = inspect_chunk(store, key, chunk_shape(entry), dtype, checksum)
            if problem:
                problems.append(f"{key} {problem}")
    problems += damaged_labels(store, prefix)
    return problems


def _write_chunk(
    store: ObjectStore, prefix: str, block: str, k: int, x: np.ndarray, entry: dict[str, Any], known: int | None
) -> int:
    """Store a chunk unless an intact one exists; returns its checksum."""
    key = chunk_key(prefix, block, k, entry)
    problem, content = inspect_chunk(store, key, chunk_shape(entry), x.dtype, known)
    if content is not None:
        return int.from_bytes(content[-4:], "little")
    rows = entry["chunk_rows"]
    chunk = x[k * rows : (k + 1) * rows]
    if chunk.shape[0] < rows:
        padded = np.full(chunk_shape(entry), np.nan, x.dtype)
        padded[: chunk.shape[0]] = chunk
        chunk = padded
    chunk = np.ascontiguousarray(chunk, dtype=x.dtype.newbyteorder("<"))
    checksum = crc32c(chunk)
    if not store.put(key, [chunk, checksum.to_bytes(4, "little")], overwrite=problem != "is missing"):
        # Another writer was first: use the checksum of its commit.
        _, content = inspect_chunk(store, key, chunk_shape(entry), x.dtype, None)
        if content is None:
            raise CorruptionError(f"{key} in {store.url} was damaged during the write: {REMEDY}")
        return int.from_bytes(content[-4:], "little")
    return checksum


def _put_exactly(store: ObjectStore, key: str, content: bytes) -> None:
    if not store.put(key, content) and parsed(store.get(key)) != json.loads(content):
        store.put(key, content, overwrite=True)


@lru_cache(maxsize=16)
def _cached_manifest(url: str, prefix: str) -> dict[str, Any]:
    return read_manifest(open_store(url), prefix)


def prepared_prefixes(store: ObjectStore) -> Iterator[str]:
    """Yield the prefixes of all complete prepared data sets in a store."""
    for key in store.list("data/"):
        if key.endswith("/manifest.json"):
            yield key.removesuffix("/manifest.json")
