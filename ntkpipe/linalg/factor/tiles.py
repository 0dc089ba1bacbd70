"""Tiles of a factor in an object store, as raw bytes with a checksum that covers the address, and a manifest.

The layout under the caller's prefix (`cholesky/<key>`) is:

    manifest.json      everything that determines the values and the grid of the tiles
    tile-00003-00001   the little-endian bytes of tile (3, 1), row by row, and four bytes of CRC-32C

The checksum covers the manifest's fingerprint, the address and the bytes. So it detects a tile that is damaged, was written for
another matrix or ridge, or has the name of another tile.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np

from ntkpipe.errors import CorruptionError
from ntkpipe.storage.protocol import MissingObjectError, ObjectStore
from ntkpipe.tiles.grid import TileGrid

Address = tuple[int, int]

# Version of the layout above and of the order of the sums.
_FORMAT = 2
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class FactorIdentity:
    """Everything that determines the values of a factor.

    Args:
        matrix: digest of the content of the matrix `A`.
        n: number of rows of `A`.
        ridge: absolute, added to the diagonal.
        dtype: `float32` or `float64`, of the factor and its arithmetic.
        edge: rows of a tile; another edge sums in another order, and differs in the last bits.
    """

    matrix: str
    n: int
    ridge: float
    dtype: str
    edge: int

    @cached_property
    def fingerprint(self) -> str:
        """64 hexadecimal digits."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def grid(self) -> TileGrid:
        """The tiles of `L`."""
        return TileGrid(self.n, self.n, self.edge, symmetric=True)

    def to_json(self) -> str:
        """Canonical JSON, with the ridge in full precision."""
        return json.dumps({**asdict(self), "ridge": self.ridge.hex(), "format": _FORMAT}, sort_keys=True)

    @staticmethod
    def from_json(text: str | bytes) -> FactorIdentity:
        """The inverse of `to_json`.

        Raises:
            ValueError: if the text was not written by `to_json`.
        """
        try:
            values = json.loads(text)
            if values.pop("format") != _FORMAT:
                raise ValueError("another format")
            made = FactorIdentity(**{**values, "ridge": float.fromhex(values["ridge"])})
            np.dtype(made.dtype)
            _ = made.grid
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no manifest of a factor: {error}") from error
        return made


@dataclass(frozen=True)
class FactorTiles:
    """The tiles of one factor under `prefix` of a store. It is cheap to pickle, so that workers read and write tiles."""

    store: ObjectStore
    prefix: str
    identity: FactorIdentity

    def key(self, i: int, j: int) -> str:
        """Key of tile `(i, j)`."""
        return f"{self.prefix}/tile-{i:05d}-{j:05d}"

    def read(self, i: int, j: int) -> np.ndarray:
        """Tile `(i, j)` of `L` `(rows, cols)`, C order, read-only; zero above the diagonal.

        Raises:
            MissingObjectError: if the tile is not stored.
            CorruptionError: if the stored object is not this tile.
        """
        dtype = np.dtype(self.identity.dtype)
        rows, cols = self.identity.grid.tile(i, j).shape
        data = self.store.get(self.key(i, j))
        body = memoryview(data)[:-4]
        if len(data) != rows * cols * dtype.itemsize + 4 or bytes(data[-4:]) != self._checksum(i, j, body):
            raise CorruptionError(f"{self.store.url}/{self.key(i, j)} is damaged, or belongs to another factor")
        return np.frombuffer(body, dtype.newbyteorder("<")).astype(dtype, copy=False).reshape(rows, cols)

    def write(self, i: int, j: int, tile: np.ndarray, *, overwrite: bool = False) -> None:
        """Store tile `(i, j)`. An existing tile stays unless `overwrite`, because all processes compute the same bytes."""
        body = np.ascontiguousarray(tile, dtype=np.dtype(self.identity.dtype).newbyteorder("<"))
        self.store.put(self.key(i, j), [body, self._checksum(i, j, body)], overwrite=overwrite)

    def finished(self) -> set[Address]:
        """Addresses of stored tiles. Their content is checked when they are read."""
        keys = set(self.store.list(f"{self.prefix}/tile-"))
        return {(t.i, t.j) for t in self.identity.grid if self.key(t.i, t.j) in keys}

    def open(self) -> None:
        """Prepare the prefix: delete the objects of another factor there, and write the manifest."""
        if stored_identity(self.store, self.prefix) != self.identity:
            self.delete()
            self.store.put(f"{self.prefix}/{_MANIFEST}", self.identity.to_json().encode(), overwrite=True)

    def delete(self) -> None:
        """Remove the factor."""
        for key in list(self.store.list(self.prefix + "/")):
            self.store.delete(key)

    def _checksum(self, i: int, j: int, body: memoryview | np.ndarray) -> bytes:
        from ntkpipe.storage.checksum import crc32c  # imported here, because the package must be importable without it

        return struct.pack("<I", crc32c(f"{self.identity.fingerprint}/{i}/{j}".encode(), body))


def stored_identity(store: ObjectStore, prefix: str) -> FactorIdentity | None:
    """The identity of the factor under `prefix`, finished or not; None if it is missing or its manifest is damaged."""
    try:
        return FactorIdentity.from_json(store.get(f"{prefix}/{_MANIFEST}"))
    except (MissingObjectError, ValueError):
        return None
