"""Packs about a thousand receipts of one label into one object, as columns. The module does no I/O."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntkpipe.errors import CorruptionError
from ntkpipe.storage.checksum import crc32c
from ntkpipe.tiles.receipt import Receipt

SEGMENT = 1000
"""Number of receipts per segment. A million tiles are then a thousand objects of about 50 kB."""


@dataclass(frozen=True)
class Segment:
    """Receipts as columns of equal length. They take 40 bytes per tile in memory, and `Receipt` objects a kilobyte.

    Args:
        gram: key of the identity of the Gram store.
        label: label of all receipts.
        i: rows of tiles, int64.
        j: columns of tiles, int64.
        generation: generations of the receipts, int64.
        crc32c: checksums by array of the label, int64.
        seconds: times of the computations in seconds, float64.
        origin: indices into `origins`, int64.
        origins: the different provenances.
    """

    gram: str
    label: str
    i: np.ndarray
    j: np.ndarray
    generation: np.ndarray
    crc32c: dict[str, np.ndarray]
    seconds: np.ndarray
    origin: np.ndarray
    origins: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, receipts: Sequence[Receipt]) -> Segment:
        """Pack receipts of one label of one store. There must be at least one receipt."""
        origins: dict[str, dict[str, Any]] = {}
        which = []
        for receipt in receipts:
            text = json.dumps(dict(receipt.provenance), sort_keys=True)
            origins.setdefault(text, dict(receipt.provenance))
            which.append(list(origins).index(text))
        kernels = sorted(receipts[0].crc32c)
        return cls(
            receipts[0].gram,
            receipts[0].block,
            np.array([r.i for r in receipts], np.int64),
            np.array([r.j for r in receipts], np.int64),
            np.array([r.generation for r in receipts], np.int64),
            {kernel: np.array([r.crc32c[kernel] for r in receipts], np.int64) for kernel in kernels},
            np.array([r.seconds for r in receipts], np.float64),
            np.array(which, np.int64),
            tuple(origins.values()),
        )

    def __len__(self) -> int:
        return len(self.i)

    def receipt(self, row: int) -> Receipt:
        """Return the receipt of a row, equal to the one that was packed."""
        return Receipt(
            self.gram,
            self.label,
            int(self.i[row]),
            int(self.j[row]),
            {kernel: int(column[row]) for kernel, column in self.crc32c.items()},
            seconds=float(self.seconds[row]),
            provenance=self.origins[int(self.origin[row])],
            generation=int(self.generation[row]),
        )

    def to_bytes(self) -> bytes:
        """Return one line of JSON, followed by a line with its CRC-32C."""
        content = {
            "gram": self.gram,
            "label": self.label,
            "i": self.i.tolist(),
            "j": self.j.tolist(),
            "generation": self.generation.tolist(),
            "crc32c": {kernel: column.tolist() for kernel, column in self.crc32c.items()},
            "seconds": self.seconds.tolist(),
            "origin": self.origin.tolist(),
            "origins": list(self.origins),
        }
        body = json.dumps(content, sort_keys=True, allow_nan=False, separators=(",", ":")).encode()
        return b"%b\n%08x\n" % (body, crc32c(body))

    @classmethod
    def from_bytes(cls, data: bytes, name: str, gram: str, label: str) -> Segment:
        """Parse the result of `to_bytes`.

        Raises:
            CorruptionError: if a byte differs, or the segment belongs to another store or label. The text contains
                `name`.
        """
        body, _, seal = data.rstrip(b"\n").rpartition(b"\n")
        if data != b"%b\n%b\n" % (body, seal) or seal != b"%08x" % crc32c(body):
            raise CorruptionError(f"the segment of receipts {name} is damaged: its tiles will be recomputed")
        try:
            content = json.loads(body)
            made = cls(
                content["gram"],
                content["label"],
                np.array(content["i"], np.int64),
                np.array(content["j"], np.int64),
                np.array(content["generation"], np.int64),
                {kernel: np.array(column, np.int64) for kernel, column in content["crc32c"].items()},
                np.array(content["seconds"], np.float64),
                np.array(content["origin"], np.int64),
                tuple(content["origins"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptionError(
                f"the segment of receipts {name} was written by another version of ntkpipe"
            ) from error
        if (made.gram, made.label) != (gram, label):
            raise CorruptionError(f"the segment of receipts {name} belongs to another store or block")
        return made
