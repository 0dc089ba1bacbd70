"""The receipts of one label of a Gram store.

Recent receipts are one object per tile (the tail). Older receipts are in segments of about a thousand.

```
receipts/<label>/<i>.<j>.json               the tail; <i>.<j>.<g>.json for a tile that was discarded g times
segments/<label>/<hash>.json                a segment, named by its content
segments/<label>/discarded.<i>.<j>.<g>      a mark that voids the receipts of that tile up to generation g
```

No object is ever changed, so no two processes can undo each other's work, even if one is killed at any moment:

- A receipt counts if no mark voids its generation. If a tile has several receipts, the highest generation counts. A
  receipt is written put-if-absent, in the generation after the last voided one.
- A tile is discarded by putting a mark. Its receipt may be in the tail, in a segment, or on its way from the tail to a
  segment. It is void in each case. The recomputed tile has the next generation, which the mark does not void.
- Receipts are compacted by putting a segment and then deleting the receipts in it from the tail. If the process is
  killed between these steps, the receipts exist twice and agree. Two processes that compact at the same time write
  segments that overlap and agree.
- A listing reads the tail first and the segments second, so that it finds a receipt that was moved in between. In the
  other order, a thousand tiles could seem to be missing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from ntkpipe.errors import CorruptionError, StoreError
from ntkpipe.storage.protocol import MissingObjectError, ObjectStore
from ntkpipe.tiles.layout import Layout
from ntkpipe.tiles.receipt import Receipt
from ntkpipe.tiles.segment import SEGMENT, Segment

_READERS = 16  # number of concurrent requests; a thousand receipts of a bucket then take about two seconds
_RECEIPT = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)(?:\.([1-9]\d*))?\.json", re.ASCII)
_SEGMENT = re.compile(r"[0-9a-f]{16}\.json", re.ASCII)
_TRIES = 16  # number of attempts to commit a receipt while other processes change the same tile


class _Known:
    """The segments and marks of a label that this process has read. Segments never change, so each is read once."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.listed: frozenset[str] | None = None
        self.segments: dict[str, Segment] = {}
        self.damaged: dict[str, str] = {}
        self.voided: dict[tuple[int, int], int] = {}
        self._order: list[Segment] = []
        self._addresses = self._which = self._rows = np.empty(0, np.int64)

    def update(self, listed: frozenset[str], loaded: dict[str, Segment], damaged: dict[str, str]) -> None:
        self.listed, self.damaged = listed, damaged
        self.segments = {name: segment for name, segment in (self.segments | loaded).items() if name in listed}
        self.voided = {}
        for name in listed:
            if (mark := _parse_mark(name)) is not None:
                i, j, generation = mark
                self.voided[i, j] = max(generation, self.voided.get((i, j), -1))
        self._order = list(self.segments.values())
        if not self._order:
            self._addresses = self._which = self._rows = np.empty(0, np.int64)
            return
        addresses = np.concatenate([_packed(s.i, s.j) for s in self._order])
        generations = np.concatenate([s.generation for s in self._order])
        which = np.repeat(np.arange(len(self._order)), [len(s) for s in self._order])
        rows = np.concatenate([np.arange(len(s)) for s in self._order])
        if self.voided:
            marks = np.array(sorted((_packed(i, j), g) for (i, j), g in self.voided.items()), np.int64)
            at = np.minimum(np.searchsorted(marks[:, 0], addresses), len(marks) - 1)
            kept = (marks[at, 0] != addresses) | (generations > marks[at, 1])
            addresses, generations, which, rows = (a[kept] for a in (addresses, generations, which, rows))
        order = np.lexsort((generations, addresses))
        last = np.append(np.diff(addresses[order]) != 0, True)[: len(order)]  # highest generation of each tile
        order = order[last]
        self._addresses, self._which, self._rows = addresses[order], which[order], rows[order]

    def generation(self, i: int, j: int) -> int:
        return self.voided.get((i, j), -1) + 1

    def find(self, i: int, j: int) -> Receipt | None:
        at = int(np.searchsorted(self._addresses, address := _packed(i, j)))
        if at == len(self._addresses) or self._addresses[at] != address:
            return None
        return self._order[int(self._which[at])].receipt(int(self._rows[at]))

    def addresses(self) -> tuple[np.ndarray, np.ndarray]:
        return self._addresses >> 32, self._addresses & 0xFFFFFFFF


_known: dict[tuple[str, str], _Known] = {}


@dataclass(frozen=True)
class Ledger:
    """The receipts of a label. A ledger is cheap to make, because its cache is shared within the process.

    Args:
        objects: the object store that holds the receipts.
        layout: layout of the Gram store.
        label: `train`, `test`, `diagonal/train` or `diagonal/test`.
    """

    objects: ObjectStore
    layout: Layout
    label: str

    # ---- one tile

    def current(self, i: int, j: int) -> Receipt | None:
        """Return the valid receipt of a tile, or None.

        Raises:
            CorruptionError: if the receipt is damaged or belongs to another tile.
            StoreError: if other processes write and discard it all the time.
        """
        known = self._loaded()
        for _ in range(_TRIES):
            generation, found = known.generation(i, j), known.find(i, j)
            data = None if found is not None else self._tail_object(i, j, generation)
            self.refresh()  # after reading the tail, in case the receipt moved to a segment meanwhile
            if known.generation(i, j) != generation:
                continue
            if found is None and data is not None:
                return self._checked(data, i, j, generation)
            return known.find(i, j)
        raise self._contended(i, j)

    def known(self, i: int, j: int) -> Receipt | None:
        """Return the receipt from a cached segment, without a request. It may be void by now."""
        return self._loaded().find(i, j)

    def generation(self, i: int, j: int) -> int:
        """Return the generation of a tile's valid receipt, as far as this process knows."""
        return self._loaded().generation(i, j)

    def record(self, receipt: Receipt) -> Receipt:
        """Write a receipt unless the tile has one with equal checksums. A receipt with other checksums is voided.

        Returns:
            The stored receipt, which another process may have written.
        """
        i, j = receipt.i, receipt.j
        known = self._loaded()
        for _ in range(_TRIES):
            self.refresh()
            stored: Receipt | None = known.find(i, j)
            generation = known.generation(i, j)
            if stored is None:
                mine = dataclasses.replace(receipt, generation=generation)
                if self.objects.put(self.layout.receipt_key(self.label, i, j, generation), mine.to_bytes()):
                    return mine
                try:
                    stored = self.current(i, j)
                except CorruptionError:
                    self._void(i, j, generation)
                    continue
                if stored is None:
                    continue  # the tile was discarded meanwhile
            if stored.crc32c == receipt.crc32c:
                return stored
            self._void(i, j, stored.generation)
        raise self._contended(i, j)

    def discard(self, i: int, j: int) -> None:
        """Void every receipt of a tile."""
        tail = [generation for a, b, generation in self._tail() if (a, b) == (i, j)]
        self.refresh()
        known = self._loaded()
        found = known.find(i, j)
        generations = [*tail, *([found.generation] if found is not None else [])]
        if generations:
            self._void(i, j, max(generations))
            self.objects.delete_all(self.layout.receipt_key(self.label, i, j, g) for g in tail)

    # ---- many

    def read(self, addresses: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, Receipt | CorruptionError | None]]:
        """Yield row, column and receipt of these tiles in the given order, with many requests at once.

        The receipt is the result of `current`, or the `CorruptionError` that `current` raises.
        """

        def look(some: Sequence[tuple[int, int]]) -> list[Receipt | CorruptionError | None]:
            found: list[Receipt | CorruptionError | None] = []
            for i, j in some:
                try:
                    found.append(self.known(i, j) or self.current(i, j))
                except CorruptionError as error:
                    found.append(error)
            return found

        self._loaded()
        with ThreadPoolExecutor(_READERS, thread_name_prefix="receipts") as pool:
            for start in range(0, len(addresses), SEGMENT):
                batch = addresses[start : start + SEGMENT]
                slices = [batch[k : k + 64] for k in range(0, len(batch), 64)]
                for some, found in zip(slices, pool.map(look, slices), strict=True):
                    yield from ((i, j, receipt) for (i, j), receipt in zip(some, found, strict=True))

    def done(self) -> np.ndarray:
        """Return a bool array that tells, by `Layout.rank`, which tiles have a receipt.

        This takes two listings and reads new segments. Receipts of the tail are not read.
        """
        done = np.zeros(self.layout.count(self.label), bool)
        tail = self._tail()
        self.refresh()
        known = self._loaded()
        i, j = known.addresses()
        inside = self.layout.holds(self.label, i, j)
        done[self.layout.rank(self.label, i[inside], j[inside])] = True
        for row, column, generation in tail:
            if generation >= known.generation(row, column) and self.layout.holds(self.label, row, column):
                done[self.layout.rank(self.label, row, column)] = True
        return done

    def compact(self, size: int = SEGMENT) -> int:
        """Move receipts of the tail into segments of `size`. A smaller rest stays in the tail.

        Any number of processes may call this at any time, and may be killed. A driver should call it now and then.

        Returns:
            Number of written segments.
        """
        tail = sorted(self._tail())
        self.refresh()
        known = self._loaded()
        live = [(i, j, g) for i, j, g in tail if g >= known.generation(i, j) and self.layout.holds(self.label, i, j)]
        written = 0
        with ThreadPoolExecutor(_READERS, thread_name_prefix="receipts") as pool:
            for start in range(0, len(live) - size + 1, size):
                batch = live[start : start + size]
                # The pool reads slices, because one task per receipt took most of the time on a local disk.
                parts = pool.map(self._sound, (batch[k::_READERS] for k in range(_READERS)))
                receipts = sorted((r for part in parts for r in part), key=lambda r: (r.i, r.j))
                if not receipts:
                    continue
                data = Segment.of(receipts).to_bytes()
                key = self._segment_key(f"{sha256(data).hexdigest()[:16]}.json")
                if not self.objects.put(key, data) and self.objects.get(key) != data:
                    self.objects.put(key, data, overwrite=True)  # the name is a hash of the content, so the segment was
                    # damaged
                self.objects.delete_all(self.layout.receipt_key(self.label, r.i, r.j, r.generation) for r in receipts)
                written += 1
        if written:
            self.refresh()
        return written

    def refresh(self) -> None:
        """Read new segments and marks. This takes one listing, and each new segment is read once."""
        known = _known.setdefault((f"{self.objects.url}/{self.layout.name}", self.label), _Known())
        folder = self._segment_key("")
        with known.lock:
            listed = frozenset(key[len(folder) :] for key in self.objects.list(folder))
            if listed == known.listed and not known.damaged:
                return
            new = [name for name in sorted(listed) if _SEGMENT.fullmatch(name) and name not in known.segments]
            loaded: dict[str, Segment] = {}
            damaged: dict[str, str] = {}
            with ThreadPoolExecutor(min(_READERS, max(1, len(new)))) as pool:
                for name, found in zip(new, pool.map(self._segment, new), strict=True):
                    if isinstance(found, Segment):
                        loaded[name] = found
                    elif found is not None:
                        damaged[name] = found
            known.update(listed, loaded, damaged)

    def reread(self) -> None:
        """Clear the cache and read again."""
        _known.pop((f"{self.objects.url}/{self.layout.name}", self.label), None)
        self.refresh()

    def audit(self) -> tuple[set[str], dict[str, str]]:
        """Return the keys of the valid segments and marks, and the damage of damaged segments by key."""
        known = self._loaded()
        marks = {name for name in known.listed or () if _parse_mark(name) is not None}
        good = {self._segment_key(name) for name in marks | set(known.segments)}
        return good, {self._segment_key(name): text for name, text in known.damaged.items()}

    def live_keys(self, keys: Iterable[str]) -> Iterator[str]:
        """Yield those of `keys` that belong to valid receipts of the tail."""
        known = self._loaded()
        for i, j, generation in self._parsed(keys):
            if generation >= known.generation(i, j) and self.layout.holds(self.label, i, j):
                yield self.layout.receipt_key(self.label, i, j, generation)

    # ---- inside

    def _loaded(self) -> _Known:
        where = (f"{self.objects.url}/{self.layout.name}", self.label)
        known = _known.get(where)
        if known is None or known.listed is None:
            self.refresh()
            known = _known[where]
        return known

    def _segment_key(self, name: str) -> str:
        return self.layout.key(f"segments/{self.label}/{name}")

    def _segment(self, name: str) -> Segment | str | None:
        """Return a segment, a text on its damage, or None if it was deleted."""
        key = self._segment_key(name)
        try:
            return Segment.from_bytes(
                self.objects.get(key), f"{self.objects.url}/{key}", self.layout.identity.key, self.label
            )
        except MissingObjectError:
            return None
        except CorruptionError as error:
            return str(error)

    def _tail(self) -> list[tuple[int, int, int]]:
        return list(self._parsed(self.objects.list(self.layout.key(f"receipts/{self.label}/"))))

    def _parsed(self, keys: Iterable[str]) -> Iterator[tuple[int, int, int]]:
        """Yield row, column and generation of those keys that name receipts."""
        folder = self.layout.key(f"receipts/{self.label}/")
        for key in keys:
            if key.startswith(folder) and (name := _RECEIPT.fullmatch(key, len(folder))):
                i, j, generation = name.groups(default="0")
                yield int(i), int(j), int(generation)

    def _tail_object(self, i: int, j: int, generation: int) -> bytes | None:
        try:
            return self.objects.get(self.layout.receipt_key(self.label, i, j, generation))
        except MissingObjectError:
            return None

    def _checked(self, data: bytes, i: int, j: int, generation: int) -> Receipt:
        where = f"{self.objects.url}/{self.layout.receipt_key(self.label, i, j, generation)}"
        receipt = Receipt.from_bytes(data, where)
        if not receipt.is_for(self.layout.identity.key, self.label, i, j, generation):
            raise CorruptionError(f"the receipt {where} belongs to another tile. {REPAIR}")
        return receipt

    def _sound(self, addresses: Sequence[tuple[int, int, int]]) -> list[Receipt]:
        """Return the intact receipts of the tail at these addresses."""
        found = []
        for address in addresses:
            data = self._tail_object(*address)
            with contextlib.suppress(CorruptionError):
                if data is not None:
                    found.append(self._checked(data, *address))
        return found

    def _void(self, i: int, j: int, generation: int) -> None:
        note = b"the receipts of this tile up to this generation do not count\n"
        self.objects.put(self._segment_key(f"discarded.{i}.{j}.{generation}"), note)
        self.objects.delete(self.layout.receipt_key(self.label, i, j, generation))
        self.refresh()

    def _contended(self, i: int, j: int) -> StoreError:
        return StoreError(
            f"the receipt of tile ({i}, {j}) of {self.label} in {self.objects.url} is written and discarded by several "
            "processes at once: stop all but one"
        )


REPAIR = "Run `ntkpipe verify`, which lists and recomputes every damaged tile."


def _packed(i: Any, j: Any) -> Any:
    """Return one integer per address, which sorts by row and column."""
    return (i << 32) | j


def _parse_mark(name: str) -> tuple[int, int, int] | None:
    word, *numbers = name.split(".")
    if word != "discarded" or len(numbers) != 3 or not all(n.isdecimal() for n in numbers):
        return None
    i, j, generation = map(int, numbers)
    return i, j, generation
