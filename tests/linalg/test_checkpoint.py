from __future__ import annotations

import numpy as np
import pytest

from ntkpipe.linalg.checkpoint import StoreCheckpoint
from ntkpipe.linalg.lanczos import block_lanczos
from ntkpipe.linalg.operator import DenseOperator
from ntkpipe.storage.store import open_store


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path))


@pytest.fixture
def problem(make_matrix, make_labels):
    return DenseOperator(make_matrix(np.logspace(-4, 0, 120))), make_labels(120, 5)


def run(problem, checkpoint, max_steps=17):
    made = []
    result = block_lanczos(
        *problem,
        max_steps=max_steps,
        checkpoint=checkpoint,
        checkpoint_every=5,
        on_step=lambda record: made.append(record.step),
    )
    return result, made


def same(one, two):
    for name in ("basis", "projected", "coupling", "next_block", "start"):
        np.testing.assert_allclose(getattr(one, name), getattr(two, name), rtol=0, atol=1e-12)


def test_a_finished_solve_is_restored_without_a_pass_and_extended(store, problem):
    first, made = run(problem, StoreCheckpoint(store, "solve/ntk", "abc"))
    assert made == list(range(1, 18))
    again, made = run(problem, StoreCheckpoint(store, "solve/ntk", "abc"))
    assert made == []
    same(first, again)
    longer, made = run(problem, StoreCheckpoint(store, "solve/ntk", "abc"), max_steps=19)
    assert made == [18, 19]
    same(longer, block_lanczos(*problem, max_steps=19))
    assert longer.projected.shape[0] == 4 * 19


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "empty", "swap"])
@pytest.mark.parametrize(("entry", "left"), [(0, 0), (1, 5), (3, 15)])
def test_a_damaged_entry_costs_only_what_follows(store, problem, damage, entry, left):
    undisturbed, _ = run(problem, StoreCheckpoint(store, "s", "abc"))
    keys = list(store.list("s/"))
    assert len(keys) == 4
    data = bytearray(store.get(keys[entry]))
    if damage == "flip":
        data[len(data) // 3] ^= 4
    elif damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "empty":
        data = bytearray()
    elif damage == "swap":
        data = bytearray(store.get(keys[(entry + 1) % 4]))
    if damage == "delete":
        store.delete(keys[entry])
    else:
        store.put(keys[entry], bytes(data), overwrite=True)
    result, made = run(problem, StoreCheckpoint(store, "s", "abc"))
    assert made == list(range(left + 1, 18))
    same(result, undisturbed)
    assert run(problem, StoreCheckpoint(store, "s", "abc"))[1] == []


def test_every_flipped_byte_is_noticed(store):
    checkpoint = StoreCheckpoint(store, "s", "abc")
    checkpoint.append(0, 1, {"vectors": np.arange(3.0)})
    (key,) = store.list("s/")
    data = store.get(key)
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        store.put(key, bytes(damaged), overwrite=True)
        assert checkpoint.restore() == []


def test_the_checkpoint_of_another_solve_is_ignored_and_replaced(store, problem):
    run(problem, StoreCheckpoint(store, "s", "abc"))
    _, made = run(problem, StoreCheckpoint(store, "s", "other"), max_steps=7)
    assert made == list(range(1, 8))
    assert len(list(store.list("s/"))) == 2
    assert StoreCheckpoint(store, "s", "abc").restore() == []


def test_clear_leaves_nothing_and_touches_nothing_else(store, problem):
    run(problem, StoreCheckpoint(store, "s", "abc"))
    run(problem, StoreCheckpoint(store, "s2", "abc"))
    StoreCheckpoint(store, "s", "abc").clear()
    assert list(store.list("s/")) == []
    assert len(list(store.list("s2/"))) == 4
