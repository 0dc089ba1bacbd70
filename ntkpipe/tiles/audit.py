"""Checks that all objects of a Gram store agree with their receipts, and repairs the store."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from ntkpipe.errors import CorruptionError
from ntkpipe.storage.protocol import MissingObjectError
from ntkpipe.tiles.receipt import Receipt
from ntkpipe.tiles.store import GramStore


@dataclass(frozen=True)
class Problem:
    """One finding of `verify`.

    Args:
        kind: `tile` (stored values are damaged or missing), `segment` (the receipts of up to a thousand tiles are lost,
            so these tiles count as not computed), `metadata` (the manifest or the Zarr metadata is damaged, but the
            tiles are intact) or `stray` (a harmless object that belongs to no tile).
        key: key of the object.
        text: description of the problem for the user.
        label: label of a `tile` or `segment`: `train`, `test`, `diagonal/train` or `diagonal/test`.
        i: row of a `tile`; -1 for other kinds.
        j: column of a `tile`; -1 for other kinds.
    """

    kind: Literal["tile", "segment", "metadata", "stray"]
    key: str
    text: str
    label: str = ""
    i: int = -1
    j: int = -1

    @property
    def is_harmless(self) -> bool:
        """Whether the problem needs no repair."""
        return self.kind == "stray"


def verify(gram: GramStore, labels: Iterable[str] | None = None, *, deep: bool = True) -> Iterator[Problem]:
    """Compare every receipt of the store with its chunks, without changing anything.

    Tiles without a receipt are not computed yet, which is not a problem.

    Args:
        gram: the store.
        labels: labels of the blocks and diagonals to check; None means all.
        deep: read every chunk and compare checksums. Otherwise only the receipts, and presence and size of the chunks
            are checked.

    Yields:
        One problem per damaged tile and kernel, damaged receipt, damaged metadata and stray object.
    """
    layout = gram.layout
    for label in layout.labels:
        gram.ledger(label).reread()
    found = dict(gram.objects.sizes(layout.key("")))
    known = {manifest := layout.key("manifest.json"), layout.key("last_used")}
    if (text := _manifest_fault(gram)) is not None:
        yield Problem("metadata", manifest, text)
    for key, data in gram.metadata().items():
        known.add(key)
        if (text := _metadata_fault(gram, key, data)) is not None:
            yield Problem("metadata", key, text)
    wanted = set(layout.labels if labels is None else labels)
    for label in layout.labels:
        ledger = gram.ledger(label)
        done = ledger.done()
        good, damaged = ledger.audit()
        known.update(good, damaged, ledger.live_keys(found))
        if label in wanted:
            for key, text in damaged.items():
                yield Problem("segment", key, text, label)
        addresses = [t for t in layout.addresses(label) if done[layout.rank(label, *t)]]
        for i, j in addresses:  # chunks of other receipts are reported as stray below
            known.update(layout.chunk_key(kernel, label, i, j) for kernel in layout.arrays(label))
        if label in wanted:
            for i, j, receipt in ledger.read(addresses):
                for key, text in _tile_faults(gram, label, i, j, receipt, found, deep=deep):
                    yield Problem("tile", key, text, label, i, j)
    for key in sorted(set(found) - known):
        yield Problem("stray", key, f"{gram.objects.url}/{key} belongs to no computed tile and is never read")


def repair(gram: GramStore, problems: Iterable[Problem]) -> list[tuple[str, int, int]]:
    """Discard every tile in `problems`, so that the next `ntkpipe gram` recomputes it, and rewrite damaged metadata.

    Damaged segments are deleted. Their tiles are computed again too, and agree with the chunks that are still stored.

    Returns:
        Label, row and column of each discarded tile, without repetitions.
    """
    problems = list(problems)
    if any(p.kind == "metadata" for p in problems):
        gram.write_manifest(overwrite=True)
        gram.write_metadata(overwrite=True)
    gram.objects.delete_all(p.key for p in problems if p.kind == "segment")
    damaged = sorted({(p.label, p.i, p.j) for p in problems if p.kind == "tile"})
    for label, i, j in damaged:
        gram.discard(label, i, j)
    return damaged


def _tile_faults(
    gram: GramStore,
    label: str,
    i: int,
    j: int,
    receipt: Receipt | CorruptionError | None,
    found: Mapping[str, int],
    *,
    deep: bool,
) -> Iterator[tuple[str, str]]:
    if isinstance(receipt, CorruptionError):
        yield gram.layout.receipt_key(label, i, j, gram.ledger(label).generation(i, j)), str(receipt)
        return
    if receipt is None:
        return  # the tile was discarded after the listing
    for kernel in gram.layout.arrays(label):
        key = gram.layout.chunk_key(kernel, label, i, j)
        try:
            if deep or key not in found:
                gram.checked_chunk(kernel, label, i, j, receipt.crc32c)
            elif found[key] != (expected := gram.layout.chunk_bytes(label)):
                yield key, f"{gram.objects.url}/{key} has {found[key]:,} bytes instead of {expected:,}"
        except CorruptionError as error:
            yield key, str(error)


def _manifest_fault(gram: GramStore) -> str | None:
    try:
        GramStore.open(gram.objects, gram.name)
    except MissingObjectError:
        return f"{gram.where}/manifest.json is missing, so the identity of these tiles is unknown"
    except CorruptionError as error:
        return str(error)
    return None


def _metadata_fault(gram: GramStore, key: str, expected: bytes) -> str | None:
    try:
        stored = json.loads(gram.objects.get(key))
    except MissingObjectError:
        return f"{gram.objects.url}/{key} is missing: other programs cannot find the array"
    except (ValueError, RecursionError):
        return f"{gram.objects.url}/{key} is damaged: other programs cannot read the array"
    if stored != json.loads(expected):
        return f"{gram.objects.url}/{key} describes another array, or was written by another version of Zarr"
    return None
