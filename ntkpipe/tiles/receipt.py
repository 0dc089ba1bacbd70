"""The receipt of a computed tile, with checksums and origin of its objects."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ntkpipe.errors import CorruptionError
from ntkpipe.tiles.record import seal, unseal


@dataclass(frozen=True)
class Receipt:
    """The receipt of a tile. It is written after the tile's objects, which do not count without it.

    Args:
        gram: key of the identity of the Gram store.
        block: `train`, `test`, `diagonal/train` or `diagonal/test`.
        i: row of tiles.
        j: column of tiles; 0 for diagonals.
        crc32c: checksum of the stored values per kernel, without the checksum at their end.
        finite: always True, because tiles with other values are not stored.
        seconds: time of the computation in seconds, without writing.
        provenance: versions and hardware, which are recorded and never compared.
        generation: number of times that the tile was discarded before.
    """

    gram: str
    block: str
    i: int
    j: int
    crc32c: Mapping[str, int]
    finite: bool = True
    seconds: float = 0.0
    provenance: Mapping[str, Any] = field(default_factory=dict)
    generation: int = 0

    def to_bytes(self) -> bytes:
        """Return the receipt as a sealed record."""
        content = dataclasses.asdict(self)
        # The field has another name here, because `crc32c` at the top of the record is the seal's.
        content["checksums"] = {kernel: f"{crc:08x}" for kernel, crc in content.pop("crc32c").items()}
        if not self.generation:  # receipts then equal those from before there were generations
            del content["generation"]
        return seal(content)

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Receipt:
        """Parse the result of `to_bytes`.

        Raises:
            CorruptionError: if the record was changed. The text contains `name`.
        """
        content = unseal(data, name)
        try:
            checksums = content.pop("checksums")
            return cls(**content, crc32c={kernel: int(crc, 16) for kernel, crc in checksums.items()})
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise CorruptionError(f"the receipt {name} was written by another version of ntkpipe") from error

    def is_for(self, gram: str, block: str, i: int, j: int, generation: int = 0) -> bool:
        """Return whether this is the receipt of that tile, and not a copied or swapped one."""
        mine = (self.gram, self.block, self.i, self.j, self.generation)
        return mine == (gram, block, i, j, generation)
