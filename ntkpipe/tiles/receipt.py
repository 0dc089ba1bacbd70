"""The proof that a tile was computed: what was written where, and by what."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ntkpipe.errors import CorruptionError
from ntkpipe.tiles.record import seal, unseal


@dataclass(frozen=True)
class Receipt:
    """Written after the objects of one tile task; without it they do not count.

    Args:
        gram: key of the identity of the Gram store.
        block: `train`, `test`, `diagonal/train` or `diagonal/test`.
        i: row of tiles.
        j: column of tiles; 0 for diagonals.
        crc32c: checksum of the stored bytes per kernel, over the values without their trailing checksum.
        finite: always True: what is not finite is not stored.
        seconds: that the computation took, without writing.
        provenance: versions and hardware, recorded and never compared.
        generation: how often the tile was discarded before.
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
        """As a sealed record."""
        content = dataclasses.asdict(self)
        # `crc32c` at the top of the record is the seal's own.
        content["checksums"] = {kernel: f"{crc:08x}" for kernel, crc in content.pop("crc32c").items()}
        if not self.generation:  # so that receipts are what they were before there were generations
            del content["generation"]
        return seal(content)

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Receipt:
        """The inverse of `to_bytes`.

        Raises:
            CorruptionError: if the record was changed; the text says `name`.
        """
        content = unseal(data, name)
        try:
            checksums = content.pop("checksums")
            return cls(**content, crc32c={kernel: int(crc, 16) for kernel, crc in checksums.items()})
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise CorruptionError(f"the receipt {name} was written by another version of ntkpipe") from error

    def is_for(self, gram: str, block: str, i: int, j: int, generation: int = 0) -> bool:
        """True if this is the receipt of that tile: a copied or swapped one is not."""
        mine = (self.gram, self.block, self.i, self.j, self.generation)
        return mine == (gram, block, i, j, generation)
