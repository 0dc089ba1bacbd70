"""Tasks of consecutive tiles, and progress."""

from __future__ import annotations

from itertools import repeat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkpipe.gram.plan import BATCH_SECONDS, batch_size, batches
from ntkpipe.gram.progress import WINDOW_SECONDS, Progress
from ntkpipe.tiles.grid import TileGrid
from ntkpipe.units import human_bytes, human_seconds


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(1, 12), symmetric=st.booleans(), size=st.integers(1, 9))
def test_batches_hold_every_address_once_in_order(rows, symmetric, size) -> None:
    grid = TileGrid(rows, rows, 1, symmetric)
    addresses = [(t.i, t.j) for t in grid]
    groups = list(batches(iter(addresses), repeat(size)))
    assert [a for group in groups for a in group] == addresses
    assert all(len(group) == size for group in groups[:-1])
    assert all(0 < len(group) <= size for group in groups)


def test_batches_are_lazy() -> None:
    taken = []

    def addresses():
        for j in range(10**9):
            taken.append(j)
            yield 0, j

    groups = batches(addresses(), repeat(5))
    for _ in range(3):
        assert len(next(groups)) == 5
    assert len(taken) <= 16


def test_batches_are_small_at_first_and_at_the_end() -> None:
    assert batch_size(1000, 2, 0.1, measured=False) == 4
    assert batch_size(1000, 2, 100.0, measured=False) == 1
    assert batch_size(1000, 2, 1.0, measured=True) == int(BATCH_SECONDS)
    assert batch_size(1000, 2, 1000.0, measured=True) == 1
    assert batch_size(80, 2, 0.01, measured=True) == 20
    assert batch_size(3, 2, 1.0, measured=True) == 1
    assert batch_size(0, 2, 0.0, measured=True) == 1


def test_people_can_read_quantities() -> None:
    assert human_bytes(512) == "512 B"
    assert human_bytes(16_777_216) == "16.8 MB"
    assert human_bytes(3.2e12) == "3.2 TB"
    assert human_seconds(0.25) == "0.25 s"
    assert human_seconds(75) == "75 s"
    assert human_seconds(600) == "10 min"
    assert human_seconds(7500) == "2 h 05 min"
    assert human_seconds(3 * 86400 + 3600) == "3 d 1 h"


def test_progress_counts_rates_and_ends() -> None:
    p = Progress("gram", total=10, total_pairs=1000, start=100.0)
    assert p.rate is None
    assert p.eta is None
    p.reuse(2, 200)
    assert p.rate is None
    p.add(2, 200, now=104.0)
    assert p.rate == pytest.approx(50)
    assert p.eta == pytest.approx(12)
    assert p.line() == "gram: 4 of 10 tiles (40%), 50 pairs/s, 12 s to go"
    record = p.record()
    assert (record["done"], record["total"], record["pairs"], record["seconds"]) == (4, 10, 400, 4.0)
    p.add(6, 600, now=110.0)
    assert p.eta == 0.0
    assert p.line() == "gram: 10 of 10 tiles (100%), 80 pairs/s"


def test_progress_forgets_what_is_long_ago() -> None:
    p = Progress("gram", total=10**6, total_pairs=10**6, start=0.0)
    for k in range(1, 1001):
        p.add(1, 1, now=float(k))  # one pair a second
    for k in range(1, int(WINDOW_SECONDS) * 2 + 1):
        p.add(10, 10, now=1000.0 + k)  # then ten
    assert p.rate == pytest.approx(10)
    assert len(p._window) <= WINDOW_SECONDS + 3
