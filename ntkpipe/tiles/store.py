"""The Gram store: tiles as chunks of Zarr arrays, a receipt per tile, and a manifest with the identity.

```
gram/<name>/manifest.json                          the whole identity
            receipts/<block>/<i>.<j>.json          written after the tile; block is train or test
            receipts/diagonal/<block>/<i>.0.json
            segments/<block>/<hash>.json           a thousand receipts in one object (tiles.ledger)
            tiles.zarr/<kernel>/<block>/c/<i>/<j>  Zarr v3; kernel is nngp or ntk, or gram for a function
            tiles.zarr/diagonal/<block>/<kernel>/c/<i>
```

A store holds a kernel k, or its even or odd part under flips of the images, `k(x, y) +- k(x, flipped y)`
(`identity.symmetry`). `diagonal` is the diagonal of the values in the tiles. k(x, x) itself, to which relative ridges
refer, is then stored beside it as `plain_<kernel>`.

ntkpipe writes chunks itself instead of through Zarr. A chunk holds little-endian values, NaN beyond the edge of the
matrix, and then its CRC-32C in four bytes, as Zarr's `bytes` and `crc32c` codecs expect. So every chunk is
put-if-absent (Zarr would overwrite), is written without a copy, and can be read by any Zarr library.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntkpipe.errors import ConfigError, CorruptionError, IncompleteError
from ntkpipe.storage.clock import now
from ntkpipe.storage.protocol import Lease, MissingObjectError, ObjectStore
from ntkpipe.tiles.chunk import finite_error, inside, to_chunk
from ntkpipe.tiles.chunk_objects import get_chunk, put_chunk
from ntkpipe.tiles.grid import Tile, TileGrid
from ntkpipe.tiles.identity import GramIdentity
from ntkpipe.tiles.layout import PLAIN, Block, Kernel, Layout, check_name
from ntkpipe.tiles.ledger import REPAIR, Ledger
from ntkpipe.tiles.receipt import Receipt
from ntkpipe.tiles.record import seal, unseal
from ntkpipe.tiles.segment import SEGMENT
from ntkpipe.tiles.zarr_metadata import zarr_metadata

# Checksums from the receipts of the tail that this process has read, so that several passes parse each receipt once.
_checksums: dict[tuple[str, str, int, int], Mapping[str, int]] = {}


@dataclass(frozen=True)
class GramStore:
    """Tiles of all kernels of one identity. It is cheap to pickle. `create_or_open` and `open` make it.

    The `train` block is symmetric, and its lower triangle is stored. The `test` block has the test images as rows and
    the training images as columns. Both blocks span the full data set. Runs on subsets read leading blocks.

    Args:
        objects: the object store that holds everything.
        name: folder under `gram/`.
        identity: identity of the tiles.
    """

    objects: ObjectStore
    name: str
    identity: GramIdentity

    @classmethod
    def create_or_open(cls, objects: ObjectStore, identity: GramIdentity, *, name: str | None = None) -> GramStore:
        """Open the store of `identity`, or create it if there is none. Many processes may do this at once.

        Args:
            objects: the object store that holds it.
            identity: identity that the store gets, or must have.
            name: name of the store; None names it by its identity.

        Raises:
            IdentityError: if the store of that name has another identity. The text names each differing field.
            CorruptionError: if the manifest of a named store is damaged.
        """
        gram = cls(objects, check_name(name or identity.key), identity)
        if not gram.write_manifest():
            try:
                cls.open(objects, gram.name).identity.require(identity, gram.where)
            except CorruptionError:
                if gram.name != identity.key:
                    raise
                # The folder's name is the key of the identity, so a damaged manifest can be written again.
                gram.write_manifest(overwrite=True)
        gram.write_metadata()
        objects.put(gram.layout.key("last_used"), f"{now()}\n".encode(), overwrite=True)
        return gram

    @classmethod
    def open(cls, objects: ObjectStore, name: str) -> GramStore:
        """Open the existing store `name`.

        Raises:
            MissingObjectError: if there is no such store.
            CorruptionError: if its manifest is damaged.
        """
        key = f"gram/{check_name(name)}/manifest.json"
        data = objects.get(key)
        try:
            identity = unseal(data, key)["identity"]
        except (CorruptionError, KeyError):
            raise CorruptionError(
                f"the manifest {objects.url}/{key} is damaged: delete this Gram store with `ntkpipe clean`"
            ) from None
        return cls(objects, name, GramIdentity.from_dict(identity))

    @classmethod
    def at(cls, objects: ObjectStore, identity: GramIdentity, *, name: str | None = None) -> GramStore:
        """Return the store of `identity` without writing anything. `audit.verify` handles missing or damaged parts.

        Raises:
            IdentityError: if the store of that name has another identity.
        """
        gram = cls(objects, check_name(name or identity.key), identity)
        with contextlib.suppress(MissingObjectError, CorruptionError):
            cls.open(objects, gram.name).identity.require(identity, gram.where)
        return gram

    @property
    def where(self) -> str:
        """The address of the store, for messages."""
        return f"{self.objects.url}/gram/{self.name}"

    @property
    def layout(self) -> Layout:
        """Keys and shapes of its objects."""
        return Layout(self.name, self.identity)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks: `train`, and `test` if there are test images."""
        return self.layout.blocks

    def grid(self, block: Block) -> TileGrid:
        """Return the tile grid of the whole block, as stored."""
        return self.layout.grid(block)

    def lease(self, what: str) -> AbstractContextManager[Lease]:
        """Hold this store while writing to it, so that two runs do not repeat the same work.

        Raises:
            HeldError: if another process holds the store.
        """
        return self.objects.lease(f"gram/{self.name}", holder=what)

    # ---- writing

    def write_tile(
        self,
        block: Block,
        i: int,
        j: int,
        tiles: Mapping[str, np.ndarray],
        *,
        seconds: float = 0.0,
        provenance: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """Store tile `(i, j)` of all kernels, then its receipt. Repeated calls and many writers at once do no harm.

        The first writer of a chunk wins. The others, whose values may differ in the last bits, adopt the stored chunk
        and its checksum. A stored chunk that is damaged, or differs by more than rounding, is replaced.

        Args:
            block: `train` or `test`.
            i: row of tiles.
            j: column of tiles; `j <= i` in the `train` block.
            tiles: values by kernel, each of the whole tile's shape (not cut to a subset). They are cast to the stored
                dtype.
            seconds: time of the computation in seconds.
            provenance: versions and hardware, JSON-ready.

        Returns:
            The stored receipt.

        Raises:
            DataError: if values are not finite. Then nothing is written.
            ResourceError: if the store is full.
        """
        shape = self.grid(block).tile(i, j).shape
        return self._commit(block, i, j, shape, tiles, seconds, provenance or {})

    def write_diagonal(
        self,
        block: Block,
        i: int,
        values: Mapping[str, np.ndarray],
        *,
        seconds: float = 0.0,
        provenance: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """Store the values `k(x, x)` float64 of all kernels for the images of row `i` of tiles, as `write_tile` does.

        For an even or odd part of a kernel, `values` also needs `plain_nngp` and `plain_ntk`.
        """
        rows = self.grid(block).tile(i, 0).shape[0]
        return self._commit(f"diagonal/{block}", i, 0, (rows,), values, seconds, provenance or {})

    def discard(self, block: str, i: int, j: int) -> None:
        """Discard a tile, or a part of a diagonal for `diagonal/...`, so that it is recomputed."""
        # The receipt is discarded first, so that a chunk that remains after an interruption does not count.
        self.ledger(block).discard(i, j)
        _checksums.pop((self.where, block, i, j), None)
        self.objects.delete_all(self.layout.chunk_key(kernel, block, i, j) for kernel in self.layout.arrays(block))

    def compact(self, size: int = SEGMENT) -> int:
        """Pack receipts of all labels into segments of `size`, and return the number of written segments."""
        return sum(self.ledger(label).compact(size) for label in self.layout.labels)

    # ---- reading

    def missing(self, block: Block, grid: TileGrid | None = None) -> Iterator[Tile]:
        """Return an iterator over the tiles of `grid` that have no receipt, in the grid's order.

        The call makes two listings. Tiles are whole and never cut at the edge of a leading block, because one task
        makes one whole stored object.

        Args:
            block: `train` or `test`.
            grid: grid of a leading block; None means the whole block.
        """
        done = self.ledger(block).done()
        whole, rank = self.grid(block), self.layout.rank
        tiles = whole if grid is None else grid
        return (whole.tile(t.i, t.j) for t in tiles if not done[rank(block, t.i, t.j)])

    def tiles_done(self, block: Block) -> int:
        """Return the number of tiles of the whole block that have a receipt."""
        return int(self.ledger(block).done().sum())

    def missing_diagonal(self, block: Block, rows: int | None = None) -> list[int]:
        """Return the rows of tiles of the first `rows` images whose part of the diagonal has no receipt."""
        done = self.ledger(f"diagonal/{block}").done()
        return [i for i in range(self._leading(block, rows).tile_rows) if not done[i]]

    def ledger(self, label: str) -> Ledger:
        """Return the ledger with the receipts of a label."""
        return Ledger(self.objects, self.layout, label)

    def receipt(self, block: str, i: int, j: int) -> Receipt | None:
        """Return the receipt of a tile; None if there is none.

        Raises:
            CorruptionError: if the receipt is damaged or belongs to another tile.
        """
        return self.ledger(block).current(i, j)

    def matrix(self, kernel: Kernel, block: Block, rows: int | None = None, cols: int | None = None) -> StoredTiles:
        """Return one block of one kernel as a `TileMatrix`, cut to its leading `rows` and `cols`."""
        if kernel not in self.identity.kernels:
            raise ConfigError(f"kernel {kernel!r} is not one of {', '.join(self.identity.kernels)}")
        return StoredTiles(self, kernel, block, self._leading(block, rows, cols))

    def read_diagonal(
        self, block: Block, kernel: Kernel, rows: int | None = None, *, plain: bool = False
    ) -> np.ndarray:
        """Read `k(x, x)` of the first `rows` images, `(rows,)` float64.

        Args:
            block: `train` or `test`.
            kernel: name of the kernel, such as `nngp` or `ntk`.
            rows: number of leading images; None means all.
            plain: read values of the kernel itself if the tiles hold its even or odd part.

        Raises:
            IncompleteError: if a part is not computed yet.
            CorruptionError: if a part disagrees with its receipt.
        """
        grid = self._leading(block, rows)
        name = PLAIN + kernel if plain and self.identity.symmetry != "none" else kernel
        parts = [self.read_chunk(name, f"diagonal/{block}", i, 0) for i in range(grid.tile_rows)]
        return np.concatenate(parts)[: grid.rows]

    def read_chunk(self, kernel: str, block: str, i: int, j: int) -> np.ndarray:
        """Read a whole chunk and check it against its receipt. It is read-only, with NaN beyond the edge of the matrix.

        Raises:
            IncompleteError: if there is no receipt.
            CorruptionError: if the object disagrees with its receipt. The text names the object and the fault.
        """
        address = (self.where, block, i, j)
        known = _checksums.get(address)
        if known is None and (packed := self.ledger(block).known(i, j)) is not None:
            known = packed.crc32c
        if known is not None:
            try:
                return self.checked_chunk(kernel, block, i, j, known)
            except CorruptionError:
                # Another process may have discarded and recomputed the tile since this process read its receipt.
                _checksums.pop(address, None)
        receipt = self.receipt(block, i, j)
        if receipt is None:
            raise IncompleteError(f"tile ({i}, {j}) of {kernel}/{block} is not computed yet: run `ntkpipe gram`")
        values = self.checked_chunk(kernel, block, i, j, receipt.crc32c)
        _checksums[address] = receipt.crc32c
        return values

    def checked_chunk(self, kernel: str, block: str, i: int, j: int, receipt: Mapping[str, int]) -> np.ndarray:
        """Read a whole chunk as `read_chunk` does, but check it against the given checksums."""
        values, checksum = get_chunk(self.objects, self.layout, (kernel, block, i, j))
        if checksum != receipt.get(kernel):
            raise CorruptionError(
                f"{self.objects.url}/{self.layout.chunk_key(kernel, block, i, j)} is intact but not tile ({i}, {j}) of "
                f"{kernel}/{block}: its receipt has another checksum. {REPAIR}"
            )
        return values

    # ---- for other readers of Zarr

    def metadata(self) -> dict[str, bytes]:
        """Return the Zarr metadata of every group and array by key, as Zarr itself writes it."""
        return zarr_metadata(self.identity, self.layout)

    def write_manifest(self, *, overwrite: bool = False) -> bool:
        """Write the manifest if it is absent, or in any case with `overwrite`; returns whether it was written."""
        manifest = seal({"identity": self.identity.to_dict(), "created": now()})
        return self.objects.put(self.layout.key("manifest.json"), manifest, overwrite=overwrite)

    def write_metadata(self, *, overwrite: bool = False) -> None:
        """Write the objects of `metadata` that are absent, or all of them."""
        # The last object implies the others, so that opening a store again costs one request.
        last = self.layout.key("tiles.zarr/zarr.json")
        if overwrite or not self.objects.exists(last):
            for key, data in sorted(self.metadata().items(), key=lambda item: item[0] == last):
                self.objects.put(key, data, overwrite=overwrite)

    # ---- inside

    def _leading(self, block: Block, rows: int | None, cols: int | None = None) -> TileGrid:
        whole = self.grid(block)
        return whole.leading(whole.rows if rows is None else rows, cols)

    def _commit(
        self,
        block: str,
        i: int,
        j: int,
        shape: tuple[int, ...],
        arrays: Mapping[str, np.ndarray],
        seconds: float,
        provenance: Mapping[str, Any],
    ) -> Receipt:
        names = self.layout.arrays(block)
        if set(arrays) != set(names):
            raise ValueError(f"a tile has the kernels {', '.join(names)}, got {', '.join(arrays) or 'none'}")
        _, chunk_shape, dtype = self.layout.shapes(block)
        chunks = {}
        for kernel in names:  # all chunks are checked before the first is written
            if arrays[kernel].shape != shape:
                raise ValueError(f"tile ({i}, {j}) of {kernel}/{block} has shape {shape}, got {arrays[kernel].shape}")
            chunks[kernel] = to_chunk(arrays[kernel], chunk_shape, dtype)
            if error := finite_error(chunks[kernel][inside(shape)], kernel, block, i, j, self.identity.edge):
                raise error
        with ThreadPoolExecutor(len(names), thread_name_prefix="chunk-writer") as pool:
            stored_as = pool.map(
                lambda kernel: put_chunk(self.objects, self.layout, (kernel, block, i, j), chunks[kernel], shape), names
            )
            checksums = dict(zip(names, stored_as, strict=True))
        receipt = Receipt(self.identity.key, block, i, j, checksums, seconds=seconds, provenance=dict(provenance))
        stored = self.ledger(block).record(receipt)
        _checksums.pop((self.where, block, i, j), None)
        return stored


@dataclass(frozen=True)
class StoredTiles:
    """A `TileMatrix` over one block of one kernel of a Gram store."""

    gram: GramStore
    kernel: Kernel
    block: Block
    grid: TileGrid

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        """The dtype of the stored tiles."""
        return np.dtype(self.gram.identity.stored_dtype)

    def read(self, i: int, j: int) -> np.ndarray:
        """Read tile `(i, j)` as `TileMatrix.read` does. The result may be read-only."""
        tile = self.grid.tile(i, j)
        chunk = self.gram.read_chunk(self.kernel, self.block, i, j)
        return chunk if chunk.shape == tile.shape else np.ascontiguousarray(chunk[: tile.shape[0], : tile.shape[1]])

    def leading(self, rows: int, cols: int | None = None) -> StoredTiles:
        """Return the leading block `[:rows, :cols]`."""
        return StoredTiles(self.gram, self.kernel, self.block, self.grid.leading(rows, cols))
