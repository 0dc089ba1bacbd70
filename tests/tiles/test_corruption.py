from __future__ import annotations

import os

import pytest

from ntkpipe.storage.memory import MemoryStore
from ntkpipe.tiles.store import GramStore
from tests.corruption import campaign


def run_campaign(make, rounds: int, seed: int) -> dict[str, int]:
    """Over a store whose receipts lie in segments, in the tail, and behind marks."""
    problem = make(n_train=6, n_test=3, edge=2)

    def build(k: int) -> GramStore:
        gram = problem.fill(GramStore.create_or_open(MemoryStore(os.urandom(8).hex()), problem.identity))
        if k % 3:
            gram.compact(2)
            gram.discard("train", 1, 0)
            problem.fill(gram)
        return gram

    return dict(
        campaign(
            rounds, seed, build, lambda gram: problem.fill(gram) and None, lambda k, b, i, j: problem.tile(b, i, j)[k]
        )
    )


@pytest.mark.parametrize("seed", range(3))
def test_damage_is_named_and_repaired_or_harmless(make, seed):
    outcomes = run_campaign(make, 40, seed)
    assert outcomes["named"] >= 15
    assert sum(outcomes.values()) >= 35


@pytest.mark.exhaustive
def test_a_thousand_damages(make):
    outcomes = run_campaign(make, 1000, 99)
    assert outcomes["named"] >= 500
