"""The receipts of one label of a Gram store: a tail of one object per tile, and segments of about a thousand.

```
receipts/<label>/<i>.<j>.json               the tail; of a tile that was discarded g times <i>.<j>.<g>.json
segments/<label>/<hash>.json                a segment, named by its content
segments/<label>/discarded.<i>.<j>.<g>      voids the receipts of that tile up to generation g
```

Nothing is ever changed, so that no two processes can undo each other's work, whatever is killed when:

- A receipt counts if no mark voids its generation; of several the highest generation counts. Whoever writes a receipt
  does so put-if-absent, in the generation behind the last voided one.
- To discard a tile is to put a mark. The receipt may lie in the tail or in a segment, or be on its way from the one
  into the other: it is void wherever it turns up. The tile computed anew has the next generation, which the mark spares.
- To compact is to put a segment and then to delete the very receipts in it from the tail. Killed between the two, both are
  there, and agree; two at once write segments that overlap, and agree.
- Whoever lists looks at the tail first and at the segments second: a receipt that was moved in between is seen in the
  latter. The other way round, a thousand tiles would seem missing.
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

_READERS = 16  # requests at once: a thousand receipts of a bucket then take about two seconds
_RECEIPT = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)(?:\.([1-9]\d*))?\.json", re.ASCII)
_SEGMENT = re.compile(r"[0-9a-f]{16}\.json", re.ASCII)
_TRIES = 16  # of a commit that others get in the way of


class _Known:
    """What this process has seen of a label's segments and marks. Segments never change, so each is read once."""

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
        last = np.append(np.diff(addresses[order]) != 0, True)[: len(order)]  # of several, the highest generation
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
    """The receipts of `label`. Cheap to make: what is known is shared within the process.

    Args:
        objects: where they are kept.
        layout: of the Gram store.
        label: `train`, `test`, `diagonal/train` or `diagonal/test`.
    """

    objects: ObjectStore
    layout: Layout
    label: str

    # ---- one tile

    def current(self, i: int, j: int) -> Receipt | None:
        """The receipt that counts now, None if there is none.

        Raises:
            CorruptionError: if it is damaged or belongs to another tile.
        """
        known = self._loaded()
        for _ in range(_TRIES):
            generation, found = known.generation(i, j), known.find(i, j)
            data = None if found is not None else self._tail_object(i, j, generation)
            self.refresh()  # after the tail, see above
            if known.generation(i, j) != generation:
                continue
            if found is None and data is not None:
                return self._checked(data, i, j, generation)
            return known.find(i, j)
        raise self._contended(i, j)

    def known(self, i: int, j: int) -> Receipt | None:
        """The receipt in a segment that this process has read, which may be void by now; costs no request."""
        return self._loaded().find(i, j)

    def generation(self, i: int, j: int) -> int:
        """That a receipt must have to count, as far as this process knows."""
        return self._loaded().generation(i, j)

    def record(self, receipt: Receipt) -> Receipt:
        """Put a receipt if the tile has none that says the same; one with other checksums is voided.

        Returns:
            The receipt as stored, by whomever.
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
                    continue  # discarded since
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
        """The receipts of these tiles as `current` gives them, or raises; many requests at once, in the order given."""

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
        """Which tiles have a receipt: bool, by `Layout.rank`. Two listings; new segments are read, the tail is not."""
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
        """Move receipts of the tail into segments of `size`; fewer stay where they are.

        Safe at any time, from many processes and against kills; best called by a driver now and then.

        Returns:
            Segments written.
        """
        tail = sorted(self._tail())
        self.refresh()
        known = self._loaded()
        live = [(i, j, g) for i, j, g in tail if g >= known.generation(i, j) and self.layout.holds(self.label, i, j)]
        written = 0
        with ThreadPoolExecutor(_READERS, thread_name_prefix="receipts") as pool:
            for start in range(0, len(live) - size + 1, size):
                batch = live[start : start + size]
                # In slices: a task of the pool per receipt took most of the time on a local disk.
                parts = pool.map(self._sound, (batch[k::_READERS] for k in range(_READERS)))
                receipts = sorted((r for part in parts for r in part), key=lambda r: (r.i, r.j))
                if not receipts:
                    continue
                data = Segment.of(receipts).to_bytes()
                key = self._segment_key(f"{sha256(data).hexdigest()[:16]}.json")
                if not self.objects.put(key, data) and self.objects.get(key) != data:
                    self.objects.put(key, data, overwrite=True)  # named by its content: it was damaged
                self.objects.delete_all(self.layout.receipt_key(self.label, r.i, r.j, r.generation) for r in receipts)
                written += 1
        if written:
            self.refresh()
        return written

    def refresh(self) -> None:
        """Look for new segments and marks: one listing, and each new segment once."""
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
        """Forget what this process knows, and look anew."""
        _known.pop((f"{self.objects.url}/{self.layout.name}", self.label), None)
        self.refresh()

    def audit(self) -> tuple[set[str], dict[str, str]]:
        """Keys of the segments and marks that count, and what is wrong with damaged segments, by key."""
        known = self._loaded()
        marks = {name for name in known.listed or () if _parse_mark(name) is not None}
        good = {self._segment_key(name) for name in marks | set(known.segments)}
        return good, {self._segment_key(name): text for name, text in known.damaged.items()}

    def live_keys(self, keys: Iterable[str]) -> Iterator[str]:
        """Those of `keys` that are receipts of the tail and not void."""
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
        """A segment, what is wrong with it, or None if it went."""
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
        """Row, column and generation of those keys that are receipts' names."""
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
        """The receipts of the tail at these addresses, less those that went or are damaged."""
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


REPAIR = "Run `ntkpipe verify`: it names every damaged tile and has it computed again."


def _packed(i: Any, j: Any) -> Any:
    """One integer per address."""
    return (i << 32) | j


def _parse_mark(name: str) -> tuple[int, int, int] | None:
    word, *numbers = name.split(".")
    if word != "discarded" or len(numbers) != 3 or not all(n.isdecimal() for n in numbers):
        return None
    i, j, generation = map(int, numbers)
    return i, j, generation
