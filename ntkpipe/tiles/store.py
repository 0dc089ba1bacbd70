"""The Gram store: tiles as chunks of Zarr arrays, a receipt per tile, and a manifest that says whose tiles they are.

```
gram/<name>/manifest.json                          the identity, in full
            receipts/<block>/<i>.<j>.json          written after the tile; block is train or test
            receipts/diagonal/<block>/<i>.0.json
            segments/<block>/<hash>.json           a thousand receipts in one object, see `tiles.ledger`
            tiles.zarr/<kernel>/<block>/c/<i>/<j>  Zarr v3; kernel is nngp or ntk, of a function gram
            tiles.zarr/diagonal/<block>/<kernel>/c/<i>
```

A store holds a kernel k, or the even or odd part of it under flips of the images (`identity.symmetry`): `k(x, y) +- k(x, flipped
y)`. `diagonal` is the diagonal of what the tiles hold; k(x, x) itself, which relative ridges refer to, lies beside it as
`plain_<kernel>`.

Chunks are written by us, not through Zarr: little-endian values, NaN where a ragged tile ends, then their CRC-32C in
four bytes, which is what Zarr's `bytes` and `crc32c` codecs expect. So every chunk is put-if-absent (Zarr overwrites),
written without a copy, and readable by any Zarr library.
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

# Checksums of receipts of the tail that this process has read, so that passes over the tiles parse each receipt once.
_checksums: dict[tuple[str, str, int, int], Mapping[str, int]] = {}


@dataclass(frozen=True)
class GramStore:
    """Tiles of both kernels for one identity. Cheap to pickle; made by `create_or_open` or `open`.

    The `train` block is symmetric: its lower triangle is stored. The `test` block has the test images as rows
    and the training images as columns. Both span the full data set: runs on subsets read leading blocks.

    Args:
        objects: where everything is kept.
        name: folder under `gram/`.
        identity: of the tiles.
    """

    objects: ObjectStore
    name: str
    identity: GramIdentity

    @classmethod
    def create_or_open(cls, objects: ObjectStore, identity: GramIdentity, *, name: str | None = None) -> GramStore:
        """The store of `identity` in `objects`, made if there is none. Safe from many processes at once.

        Args:
            objects: where it is kept.
            identity: that it has, or must have.
            name: of a particular store; None names it by its identity.

        Raises:
            IdentityError: if the store of that name has another identity; the text names each differing field.
            CorruptionError: if its manifest is damaged.
        """
        gram = cls(objects, check_name(name or identity.key), identity)
        if not gram.write_manifest():
            try:
                cls.open(objects, gram.name).identity.require(identity, gram.where)
            except CorruptionError:
                if gram.name != identity.key:
                    raise
                # The folder's name is the identity, so nothing is lost with a torn manifest.
                gram.write_manifest(overwrite=True)
        gram.write_metadata()
        objects.put(gram.layout.key("last_used"), f"{now()}\n".encode(), overwrite=True)
        return gram

    @classmethod
    def open(cls, objects: ObjectStore, name: str) -> GramStore:
        """The existing store `name`.

        Raises:
            MissingObjectError: if there is none.
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
        """As `create_or_open`, and nothing is written: what is not there yet, or damaged, is left to `audit.verify`.

        Raises:
            IdentityError: if the store of that name has another identity.
        """
        gram = cls(objects, check_name(name or identity.key), identity)
        with contextlib.suppress(MissingObjectError, CorruptionError):
            cls.open(objects, gram.name).identity.require(identity, gram.where)
        return gram

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.objects.url}/gram/{self.name}"

    @property
    def layout(self) -> Layout:
        """Keys and shapes of its objects."""
        return Layout(self.name, self.identity)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """`train`, and `test` if there are test images."""
        return self.layout.blocks

    def grid(self, block: Block) -> TileGrid:
        """Tiles of the whole block, as stored."""
        return self.layout.grid(block)

    def lease(self, what: str) -> AbstractContextManager[Lease]:
        """Hold this store while writing to it: it saves two runs the same work. `HeldError` if another does."""
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
        """Store tile `(i, j)` of both kernels, then its receipt. Safe to run twice, and from many writers at once.

        The first writer of a chunk wins; the others, whose values may differ in the last bits, adopt what is
        stored and its checksum. A stored chunk that is damaged, or differs by more than rounding, is replaced.

        Args:
            block: `train` or `test`.
            i: row of tiles.
            j: column of tiles; of `train`, `j <= i`.
            tiles: `nngp` and `ntk`, each of the whole tile's shape (not cut to a subset), cast to the stored dtype.
            seconds: that computing took.
            provenance: versions and hardware; JSON-ready.

        Returns:
            The receipt as stored.

        Raises:
            DataError: if values are not finite; nothing is written then.
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
        """Store the kernels' values `k(x, x)` for the images of row `i` of tiles; as `write_tile`, in float64.

        Of an even or odd part, `values` has `plain_nngp` and `plain_ntk` as well.
        """
        rows = self.grid(block).tile(i, 0).shape[0]
        return self._commit(f"diagonal/{block}", i, 0, (rows,), values, seconds, provenance or {})

    def discard(self, block: str, i: int, j: int) -> None:
        """Forget a tile (or, of `diagonal/...`, a part of a diagonal), so that it is computed again."""
        # The receipt first: if this is interrupted, what is left is a chunk that does not count.
        self.ledger(block).discard(i, j)
        _checksums.pop((self.where, block, i, j), None)
        self.objects.delete_all(self.layout.chunk_key(kernel, block, i, j) for kernel in self.layout.arrays(block))

    def compact(self, size: int = SEGMENT) -> int:
        """Pack receipts into segments of `size`, see `Ledger.compact`; the number of segments written."""
        return sum(self.ledger(label).compact(size) for label in self.layout.labels)

    # ---- reading

    def missing(self, block: Block, grid: TileGrid | None = None) -> Iterator[Tile]:
        """Tiles of `grid` (a leading block; None is the whole) without a receipt, in the grid's order, each whole.

        Two listings, made when this is called; tiles are yielded lazily. They are those of the whole grid, never cut at
        the edge of a leading block: one task makes one whole stored object.
        """
        done = self.ledger(block).done()
        whole, rank = self.grid(block), self.layout.rank
        tiles = whole if grid is None else grid
        return (whole.tile(t.i, t.j) for t in tiles if not done[rank(block, t.i, t.j)])

    def tiles_done(self, block: Block) -> int:
        """Tiles of the whole block that have a receipt."""
        return int(self.ledger(block).done().sum())

    def missing_diagonal(self, block: Block, rows: int | None = None) -> list[int]:
        """Rows of tiles, of the first `rows` images, whose part of the diagonal has no receipt."""
        done = self.ledger(f"diagonal/{block}").done()
        return [i for i in range(self._leading(block, rows).tile_rows) if not done[i]]

    def ledger(self, label: str) -> Ledger:
        """The receipts of a label."""
        return Ledger(self.objects, self.layout, label)

    def receipt(self, block: str, i: int, j: int) -> Receipt | None:
        """The receipt of a tile, None if there is none.

        Raises:
            CorruptionError: if it is damaged or belongs to another tile.
        """
        return self.ledger(block).current(i, j)

    def matrix(self, kernel: Kernel, block: Block, rows: int | None = None, cols: int | None = None) -> StoredTiles:
        """One block of one kernel as a `TileMatrix`, cut to its leading `rows` and `cols`."""
        if kernel not in self.identity.kernels:
            raise ConfigError(f"kernel {kernel!r} is not one of {', '.join(self.identity.kernels)}")
        return StoredTiles(self, kernel, block, self._leading(block, rows, cols))

    def read_diagonal(
        self, block: Block, kernel: Kernel, rows: int | None = None, *, plain: bool = False
    ) -> np.ndarray:
        """`k(x, x)` of the first `rows` images (all if None): shape `(rows,)`, float64.

        Args:
            block: `train` or `test`.
            kernel: `nngp` or `ntk`.
            rows: leading images.
            plain: of the kernel itself, where the tiles hold its even or odd part.

        Raises:
            IncompleteError: if a part is not computed yet.
            CorruptionError: if a part disagrees with its receipt.
        """
        grid = self._leading(block, rows)
        name = PLAIN + kernel if plain and self.identity.symmetry != "none" else kernel
        parts = [self.read_chunk(name, f"diagonal/{block}", i, 0) for i in range(grid.tile_rows)]
        return np.concatenate(parts)[: grid.rows]

    def read_chunk(self, kernel: str, block: str, i: int, j: int) -> np.ndarray:
        """A whole chunk, checked against its receipt: read-only, NaN where a ragged tile ends.

        Raises:
            IncompleteError: if there is no receipt.
            CorruptionError: naming the object and what is wrong with it.
        """
        address = (self.where, block, i, j)
        known = _checksums.get(address)
        if known is None and (packed := self.ledger(block).known(i, j)) is not None:
            known = packed.crc32c
        if known is not None:
            try:
                return self.checked_chunk(kernel, block, i, j, known)
            except CorruptionError:
                # Perhaps the tile was discarded and computed anew by another process since we read its receipt.
                _checksums.pop(address, None)
        receipt = self.receipt(block, i, j)
        if receipt is None:
            raise IncompleteError(f"tile ({i}, {j}) of {kernel}/{block} is not computed yet: run `ntkpipe gram`")
        values = self.checked_chunk(kernel, block, i, j, receipt.crc32c)
        _checksums[address] = receipt.crc32c
        return values

    def checked_chunk(self, kernel: str, block: str, i: int, j: int, receipt: Mapping[str, int]) -> np.ndarray:
        """As `read_chunk`, against these checksums instead of a receipt that this process may have read long ago."""
        values, checksum = get_chunk(self.objects, self.layout, (kernel, block, i, j))
        if checksum != receipt.get(kernel):
            raise CorruptionError(
                f"{self.objects.url}/{self.layout.chunk_key(kernel, block, i, j)} is intact but not tile ({i}, {j}) of "
                f"{kernel}/{block}: its receipt has another checksum. {REPAIR}"
            )
        return values

    # ---- for other readers of Zarr

    def metadata(self) -> dict[str, bytes]:
        """Zarr's description of every group and array, by key, as Zarr itself writes it."""
        return zarr_metadata(self.identity, self.layout)

    def write_manifest(self, *, overwrite: bool = False) -> bool:
        """Write whose tiles they are, where it is absent, or anyway; False if it was there."""
        manifest = seal({"identity": self.identity.to_dict(), "created": now()})
        return self.objects.put(self.layout.key("manifest.json"), manifest, overwrite=overwrite)

    def write_metadata(self, *, overwrite: bool = False) -> None:
        """Write what `metadata` says where it is absent, or everywhere."""
        # The last one written proves the others, so that opening a store again costs one look.
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
        for kernel in names:  # all of them before the first is written
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
    """`TileMatrix` over one block of one kernel of a Gram store."""

    gram: GramStore
    kernel: Kernel
    block: Block
    grid: TileGrid

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        """Of the stored tiles."""
        return np.dtype(self.gram.identity.stored_dtype)

    def read(self, i: int, j: int) -> np.ndarray:
        """Tile `(i, j)`, see `TileMatrix.read`; read-only."""
        tile = self.grid.tile(i, j)
        chunk = self.gram.read_chunk(self.kernel, self.block, i, j)
        return chunk if chunk.shape == tile.shape else np.ascontiguousarray(chunk[: tile.shape[0], : tile.shape[1]])

    def leading(self, rows: int, cols: int | None = None) -> StoredTiles:
        """The leading block `[:rows, :cols]`."""
        return StoredTiles(self.gram, self.kernel, self.block, self.grid.leading(rows, cols))
