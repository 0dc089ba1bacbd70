"""Random damage to stored objects, and what must become of it: detected, named and repaired, or harmless."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from ntkpipe.errors import CorruptionError, IncompleteError, StoreError
from ntkpipe.storage.protocol import ObjectStore
from ntkpipe.tiles.audit import repair, verify
from ntkpipe.tiles.store import GramStore

KINDS = ("flip", "cut", "empty", "grow", "delete", "swap", "copy")


def damage(rng: np.random.Generator, kind: str, objects: ObjectStore, keys: list[str]) -> list[str]:
    """Damage one object, or swap two; the keys whose content changed."""
    key, other = (keys[k] for k in rng.integers(len(keys), size=2))
    data = objects.get(key)
    if kind == "delete":
        objects.delete(key)
        return [key]
    if kind in ("swap", "copy"):
        theirs = objects.get(other)
        if theirs == data:
            return []
        objects.put(key, theirs, overwrite=True)
        if kind == "swap":
            objects.put(other, data, overwrite=True)
        return [key, other] if kind == "swap" else [key]
    at = int(rng.integers(max(1, len(data))))
    changed = {
        "flip": data[:at] + bytes([data[at] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :] if data else b"x",
        "cut": data[:at],
        "empty": b"",
        "grow": data + b"\n",
    }[kind]
    objects.put(key, changed, overwrite=True)
    return [key] if changed != data else []


def campaign(
    rounds: int,
    seed: int,
    build: Callable[[int], GramStore],
    refill: Callable[[GramStore], None],
    truth: Callable[[str, str, int, int], np.ndarray],
) -> Counter[str]:
    """Damage a complete Gram store again and again.

    Args:
        rounds: of one damage each.
        seed: of the damages.
        build: a complete store of its own for each round.
        refill: compute what is missing.
        truth: the values of a kernel's tile: kernel, block, row and column.

    Returns:
        How often which outcome came: `named`, `absent` (counts as not computed, and is computed again), `harmless`.

    Raises:
        AssertionError: if a wrong value is read without complaint, if damage is not named, or if a repaired store is not whole.
    """
    rng = np.random.default_rng(seed)
    outcomes: Counter[str] = Counter()
    for k in range(rounds):
        gram = build(k)
        objects, manifest = gram.objects, gram.layout.key("manifest.json")
        kind = KINDS[int(rng.integers(len(KINDS)))]
        changed = damage(rng, kind, objects, list(objects.list()))
        forget(gram)
        about = f"round {k} of seed {seed}: {kind} of {', '.join(changed) or 'nothing'}"
        assert _wrong(gram, truth) == [], about
        if manifest in changed:
            with pytest.raises(StoreError, match=gram.name):
                GramStore.open(objects, gram.name)
            gram = GramStore.create_or_open(objects, gram.identity)  # its name is its identity
        missing = _missing(gram)
        problems = [problem for problem in verify(gram) if not problem.is_harmless]
        assert {problem.key for problem in problems} <= set(changed), about
        assert all(problem.key in problem.text or problem.label for problem in problems), about
        # A chunk whose receipt is damaged as well is named by its tile.
        named = {problem.key for problem in problems} | {manifest}
        named |= {key for p in problems if p.kind == "tile" for key in _chunks(gram, p.label, p.i, p.j)}
        for key in changed:
            if key in named:
                outcomes["named"] += 1
            elif "/c/" in key:  # nothing vouches for it any more
                assert missing, about
                outcomes["absent"] += 1
            elif "/receipts/" in key or "/segments/" in key:
                # Deleted receipts: their tiles are not computed, as far as anyone knows. A segment counts under another's
                # name too. The content of a mark says nothing; a deleted one revives a receipt, whose tile was checked.
                assert kind == "delete" or "/discarded." in key or ("/segments/" in key and kind in ("swap", "copy")), (
                    about
                )
                outcomes["absent" if missing else "harmless"] += 1
            else:
                assert key.endswith("last_used") or (key.endswith("zarr.json") and kind == "grow"), about
                outcomes["harmless"] += 1
        for _ in range(3):  # a revived receipt can hide behind another
            repair(gram, problems)
            refill(gram)
            problems = [problem for problem in verify(gram) if not problem.is_harmless]
            if not problems:
                break
        assert problems == [], about
        assert not _missing(gram), about
        assert _wrong(gram, truth) == [], about
    return outcomes


def forget(gram: GramStore) -> None:
    """See the store as a new process does."""
    for label in gram.layout.labels:
        gram.ledger(label).reread()


def _chunks(gram: GramStore, label: str, i: int, j: int) -> list[str]:
    return [gram.layout.chunk_key(kernel, label, i, j) for kernel in gram.layout.arrays(label)]


def _missing(gram: GramStore) -> bool:
    return any(any(True for _ in gram.missing(b)) or bool(gram.missing_diagonal(b)) for b in gram.blocks)


def _wrong(gram: GramStore, truth: Callable[[str, str, int, int], np.ndarray]) -> list[tuple[str, str, int, int]]:
    """Tiles that are read without complaint and are wrong."""
    wrong = []
    for kernel in ("nngp", "ntk"):
        for block in gram.blocks:
            matrix = gram.matrix(kernel, block)
            for tile in matrix.grid:
                try:
                    values = matrix.read(tile.i, tile.j)
                except (CorruptionError, IncompleteError):
                    continue
                if not np.array_equal(values, truth(kernel, block, tile.i, tile.j)):
                    wrong.append((kernel, block, tile.i, tile.j))
    return wrong
