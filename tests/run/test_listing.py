"""How often a stage asks a store for everything that it holds: a bucket answers a listing of a million keys in minutes."""

from __future__ import annotations

from collections import Counter

import pytest
from lab import QUICK

from ntkpipe.storage.local import LocalStore


@pytest.fixture
def listings(monkeypatch) -> Counter[str]:
    """Listings by what they are of, less the store's own name."""
    counted: Counter[str] = Counter()
    plain = LocalStore.list

    def count(self: LocalStore, prefix: str = ""):
        counted[prefix.partition("/")[2].partition("/")[2]] += 1
        return plain(self, prefix)

    monkeypatch.setattr(LocalStore, "list", count)
    return counted


def test_a_gram_stage_lists_receipts_once_to_find_what_is_missing(work, listings):
    work.ok("gram", *QUICK, "run_dir=a")
    # Once when receipts and tiles are compared, once to find what is missing, once when receipts are packed.
    assert listings["receipts/train/"] == 3
    assert listings["receipts/diagonal/train/"] == 3
    listings.clear()
    work.ok("gram", *QUICK, "run_dir=a")
    assert listings["receipts/train/"] == 2  # nothing to pack
