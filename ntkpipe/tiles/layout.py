"""Keys of the objects of a Gram store, and the layout of their values. The module does no I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from ntkpipe.errors import ConfigError
from ntkpipe.tiles.grid import TileGrid
from ntkpipe.tiles.identity import GramIdentity

_Integers = TypeVar("_Integers", int, np.ndarray)
Kernel = Literal["nngp", "ntk", "gram"]
"""Name of a kernel. `gram` is a given matrix, a product of given features, or the kernel of a user's function."""
Block = Literal["train", "test"]
KERNELS: tuple[Kernel, ...] = ("nngp", "ntk")
"""The kernels of a network."""
PLAIN = "plain_"
"""Prefix of a kernel's name for values of the kernel itself, if the tiles hold its even or odd part."""


@dataclass(frozen=True)
class Layout:
    """Keys and shapes of the objects of the store `name` with the given identity.

    A label is `train`, `test`, `diagonal/train` or `diagonal/test`. Tiles of a diagonal have the column `j` = 0.

    Raises:
        ConfigError: if the name is not valid for a folder.
    """

    name: str
    identity: GramIdentity

    def __post_init__(self) -> None:
        check_name(self.name)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks: `train`, and `test` if there are test images."""
        return ("train", "test") if self.identity.n_test else ("train",)

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the blocks and their diagonals."""
        return (*self.blocks, *(f"diagonal/{block}" for block in self.blocks))

    def grid(self, block: str) -> TileGrid:
        """Return the tile grid of a whole block, as stored."""
        ident = self.identity
        if block == "train":
            return TileGrid(ident.n_train, ident.n_train, ident.edge, symmetric=True)
        if block not in self.blocks:
            raise ConfigError(f"the Gram store {self.name} has no block {block!r}, only {', '.join(self.blocks)}")
        return TileGrid(ident.n_test, ident.n_train, ident.edge)

    def addresses(self, label: str) -> Iterator[tuple[int, int]]:
        """Return an iterator over the addresses `(i, j)` of all tiles of a label."""
        block = label.removeprefix("diagonal/")
        if block == label:
            return ((t.i, t.j) for t in self.grid(block))
        return ((i, 0) for i in range(self.grid(block).tile_rows))

    def arrays(self, label: str) -> tuple[str, ...]:
        """Return the names of a label's arrays: the kernels, and also the plain kernels for diagonals of a symmetry."""
        if label.startswith("diagonal/") and self.identity.symmetry != "none":
            return (*self.identity.kernels, *(PLAIN + kernel for kernel in self.identity.kernels))
        return self.identity.kernels

    def shapes(self, label: str) -> tuple[tuple[int, ...], tuple[int, ...], np.dtype]:
        """Return array shape, chunk shape and dtype of a label."""
        ident = self.identity
        rows = ident.n_train if label.endswith("train") else ident.n_test
        diagonal = label.startswith("diagonal/")
        shape = (rows,) if diagonal else (rows, ident.n_train)
        # No chunk is larger than its array, so that a hundred test images are not padded to a whole tile.
        chunk = tuple(min(ident.edge, n) for n in shape)
        return shape, chunk, np.dtype("float64" if diagonal else ident.stored_dtype).newbyteorder("<")

    def chunk_bytes(self, label: str) -> int:
        """Return the size of every chunk object of a label in bytes, including its checksum."""
        _, chunk, dtype = self.shapes(label)
        return int(np.prod(chunk)) * dtype.itemsize + 4

    def key(self, name: str) -> str:
        """Return the key of an object of this store."""
        return f"gram/{self.name}/{name}"

    def array(self, kernel: str, label: str) -> str:
        """Return the path of an array inside `tiles.zarr`."""
        return f"{label}/{kernel}" if label.startswith("diagonal/") else f"{kernel}/{label}"

    def chunk_key(self, kernel: str, label: str, i: int, j: int) -> str:
        """Return the key of a chunk."""
        address = f"{i}" if label.startswith("diagonal/") else f"{i}/{j}"
        return self.key(f"tiles.zarr/{self.array(kernel, label)}/c/{address}")

    def receipt_key(self, label: str, i: int, j: int, generation: int = 0) -> str:
        """Return the key of a receipt in the tail, which `tiles.ledger` explains."""
        return self.key(f"receipts/{label}/{i}.{j}{f'.{generation}' if generation else ''}.json")

    def count(self, label: str) -> int:
        """Return the number of tiles of a label."""
        block = label.removeprefix("diagonal/")
        return len(self.grid(block)) if block == label else self.grid(block).tile_rows

    def rank(self, label: str, i: _Integers, j: _Integers) -> _Integers:
        """Return the position of a tile in `addresses`. The arguments are numbers or arrays."""
        if label.startswith("diagonal/"):
            return i
        return i * (i + 1) // 2 + j if label == "train" else i * self.grid(label).tile_cols + j

    def holds(self, label: str, i: _Integers, j: _Integers) -> Any:
        """Return whether the label has such a tile. The arguments are non-negative numbers or arrays."""
        grid = self.grid(label.removeprefix("diagonal/"))
        if label.startswith("diagonal/"):
            return (i < grid.tile_rows) & (j == 0)
        return (i < grid.tile_rows) & (j < grid.tile_cols) & ((j <= i) | (not grid.symmetric))


def check_name(name: str) -> str:
    """Return `name` if a Gram store may have it.

    Raises:
        ConfigError: if the name is empty, starts with a dot, or has other characters than letters, digits and `-_.`.
    """
    if not name or name.startswith(".") or not all(c.isalnum() or c in "-_." for c in name):
        raise ConfigError(f"store.name={name!r}: a store's name has letters, digits, '-', '_' and '.' only")
    return name
