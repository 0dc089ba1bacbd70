from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkpipe.data.subsets import stored_order
from ntkpipe.errors import ConfigError


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 200), st.integers(0, 2**40), st.sampled_from(["train", "test"]))
def test_order_is_a_repeatable_permutation(n, seed, part):
    order = stored_order(n, seed=seed, part=part)
    assert np.array_equal(np.sort(order), np.arange(n))
    assert np.array_equal(order, stored_order(n, seed=seed, part=part))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=150), st.integers(0, 1000))
def test_every_prefix_is_balanced(labels, seed):
    labels = np.array(labels)
    order = stored_order(labels.size, seed=seed, part="train", labels=labels)
    assert np.array_equal(np.sort(order), np.arange(labels.size))
    classes, counts = np.unique(labels, return_counts=True)
    drawn = np.zeros(classes.size, int)
    for row in order:
        drawn[np.searchsorted(classes, labels[row])] += 1
        unfinished = drawn < counts
        if unfinished.any():
            # A class that is not used up is at most one behind every other, used up or not.
            assert drawn[unfinished].min() >= drawn.max() - 1


def test_seeds_and_parts_differ():
    orders = [stored_order(50, seed=s, part=p).tolist() for s in (0, 1) for p in ("train", "test")]
    assert len({tuple(o) for o in orders}) == 4


def test_the_order_is_frozen():
    # Part of every Gram store's identity: if this changes, stored tiles are lost to their owners.
    assert stored_order(10, seed=0, part="train").tolist() == FROZEN["train"]
    assert stored_order(10, seed=0, part="test").tolist() == FROZEN["test"]
    labels = np.arange(10) % 3
    assert stored_order(10, seed=7, part="train", labels=labels).tolist() == FROZEN["balanced"]


def test_classes_are_not_always_in_the_same_order_within_a_turn():
    labels = np.arange(300) % 3
    turns = labels[stored_order(300, seed=0, part="train", labels=labels)].reshape(-1, 3)
    assert len({tuple(t) for t in turns.tolist()}) == 6


def test_negative_seed():
    with pytest.raises(ConfigError, match="subset_seed"):
        stored_order(3, seed=-1, part="train")


FROZEN = {
    "train": [3, 2, 1, 8, 6, 0, 7, 4, 5, 9],
    "test": [7, 4, 5, 1, 9, 8, 6, 2, 0, 3],
    "balanced": [2, 4, 6, 3, 8, 7, 1, 5, 9, 0],
}
