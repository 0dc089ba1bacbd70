from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ntkpipe.errors import CorruptionError
from ntkpipe.linalg.operator import TileOperator, balanced_shares
from ntkpipe.linalg.tile_worker import TileWorker
from ntkpipe.tasks import executor, faults
from ntkpipe.tasks.graph import LostWorkerError
from ntkpipe.tiles.grid import TileGrid
from ntkpipe.tiles.matrix import InMemoryTiles

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# Adding in another order gives other numbers.
FACTORS = [10**16, 3, -(10**16), 7]
LARGE = (1 << 19) + 3  # rows of which four slices are above a megabyte each


@pytest.fixture(scope="module")
def workers(session) -> Iterator[Any]:
    """Four workers."""
    pool = made(session, faults.Counter, [(f,) for f in FACTORS])
    yield pool
    pool.close()


@pytest.fixture
def pool(workers, monkeypatch) -> Any:
    """The same, summing in four slices whatever nodes they are on."""
    from ntkpipe.cluster import summing

    monkeypatch.setattr(summing, "SLICE_BYTES", 1 << 20)
    workers._slices = 4
    workers._places = [(node, 0) for node in "abcd"]  # names alone
    return workers


def made(session: Any, factory: Callable[..., Any], args: list[tuple[Any, ...]]) -> Any:
    from ntkpipe.cluster.capacity import FixedCapacity
    from ntkpipe.cluster.ray_pool import RayPool

    return RayPool(factory, args, capacity=FixedCapacity(2), retries=2, environment=session._pool_environment)


def array(rows: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, 1))


def in_turn(x: np.ndarray) -> np.ndarray:
    return x * FACTORS[0] + x * FACTORS[1] + x * FACTORS[2] + x * FACTORS[3]


@pytest.mark.parametrize("nodes", ["abcd", "aabb", "aaab", "aaaa"])
@pytest.mark.parametrize("group", [1, 2, 3, 8])
def test_slices_and_the_driver_add_in_the_same_order(pool, monkeypatch, group: int, nodes: str) -> None:
    monkeypatch.setattr(executor, "GROUP", group)
    pool._places = [(node, 0) for node in nodes]
    x, totals = array(LARGE), []
    for slices in (0, 1, 3, 4, 6):
        pool._slices = slices
        totals.append(pool.total("scaled", x))
        np.testing.assert_array_equal(pool.total("scaled", x[:50]), totals[0][:50])
    scaled = [x * factor for factor in FACTORS]
    sums = [
        scaled[low] if group == 1 else sum(scaled[low + 1 : low + group], scaled[low]) for low in range(0, 4, group)
    ]
    np.testing.assert_array_equal(totals[0], sum(sums[1:], sums[0]))
    for total in totals[1:]:
        np.testing.assert_array_equal(total, totals[0])


def test_the_driver_receives_one_array_instead_of_one_from_each_worker(pool, monkeypatch) -> None:
    import ray

    received = []
    get = ray.get
    monkeypatch.setattr(ray, "get", lambda *args, **named: received.append(get(*args, **named)) or received[-1])
    x = array(LARGE)

    def fetched() -> int:
        return sum(value.nbytes for value, _ in received if isinstance(value, np.ndarray))

    pool.total("scaled", x)
    assert fetched() == x.nbytes
    received.clear()
    pool._slices = 0
    pool.total("scaled", x)
    assert fetched() == len(FACTORS) * x.nbytes


def test_workers_that_die_while_they_make_their_parts_are_replaced(pool, tmp_path: Path) -> None:
    x = array(LARGE)
    before = pool.broadcast("process_id")
    np.testing.assert_array_equal(pool.total("die_until_scaled", x, str(tmp_path), 2), in_turn(x))
    assert sum(a != b for a, b in zip(before, pool.broadcast("process_id"), strict=True)) in (1, 2)


def test_a_worker_that_is_lost_between_parts_and_sums_is_replaced(pool, monkeypatch) -> None:
    import ray

    from ntkpipe.cluster import summing

    x, added = array(LARGE), summing.Summing._added

    def late(self: Any) -> np.ndarray:
        ray.kill(pool._actors[1])
        return added(self)

    monkeypatch.setattr(summing.Summing, "_added", late)
    np.testing.assert_array_equal(pool.total("scaled", x), in_turn(x))


@pytest.mark.parametrize("losses", [2, 3])
def test_a_lost_slice_is_made_again_by_its_worker_alone(pool, monkeypatch, losses: int) -> None:
    """Told by Ray that it is lost; `test_summing_over_nodes` loses some."""
    from ray.exceptions import ObjectLostError

    from ntkpipe.cluster import summing

    x, added, remote = array(LARGE), summing.Summing._added, pool.remote
    made, lost = [], itertools.count()
    monkeypatch.setattr(pool, "remote", lambda w, m, *rest: made.append((w, m)) or remote(w, m, *rest))

    def late(self: Any) -> np.ndarray:
        if next(lost) < losses:
            raise ObjectLostError(self._parts[2][1].hex(), None, "")
        return added(self)

    monkeypatch.setattr(summing.Summing, "_added", late)
    monkeypatch.setattr(summing, "alive_nodes", lambda: [{"NodeID": node} for node in "abcd"])
    if losses > 2:
        with pytest.raises(LostWorkerError, match="parts of a sum died 3 times"):
            pool.total("scaled", x)
        return
    np.testing.assert_array_equal(pool.total("scaled", x), in_turn(x))
    assert [w for w, m in made if m == "parts"] == [0, 1, 2, 3, 2, 2]


def test_errors_come_back_as_they_were_raised(pool) -> None:
    with pytest.raises(CorruptionError, match="tile"):
        pool.total("fail", CorruptionError("tile (3, 1)"))
    np.testing.assert_array_equal(pool.total("scaled", array(9)), in_turn(array(9)))


def test_products_of_a_stored_matrix_are_the_same_in_every_bit(session, monkeypatch) -> None:
    from ntkpipe.cluster import summing

    monkeypatch.setattr(summing, "SLICE_BYTES", 1 << 20)
    n, grid = 400, TileGrid(400, 400, 64, symmetric=True)
    a = np.random.default_rng(1).normal(size=(n, n))
    matrix, x = InMemoryTiles(a + a.T, grid), np.random.default_rng(2).normal(size=(n, 1000))
    shares = balanced_shares(grid, 2, symmetric=True)
    pool = made(session, TileWorker, [(matrix, share, "float64", 1 << 30, "cpu") for share in shares])
    products = []
    with TileOperator(grid, pool) as operator:
        pool._places = [("a", 0), ("b", 0)]
        for slices in (0, 3, 3):
            pool._slices = slices
            products.append(operator.matmul(x))
    bound = 4 * n * np.finfo(np.float64).eps * np.abs(a + a.T).sum(1).max() * np.abs(x).max()
    np.testing.assert_allclose(products[0], (a + a.T) @ x, rtol=0, atol=bound)
    for product in products[1:]:
        np.testing.assert_array_equal(product, products[0])


def test_slices_follow_the_nodes() -> None:
    from ntkpipe.cluster.summing import MOST_SLICES, hosts, slices_for

    assert slices_for([None, None], "here") == 0
    assert slices_for([("here", 0), ("here", 1)], "here") == 0
    assert slices_for([("here", 0), ("there", 0)], "here") == 0  # one part would travel either way
    assert slices_for([("there", 0), ("there", 1)], "here") == 1
    assert slices_for([("here", 0), ("b", 0), ("here", 1), ("b", 1)], "here") == 2
    assert slices_for([(str(k), 0) for k in range(100)], "here") == MOST_SLICES
    places = [("a", 0), ("a", 1), ("b", 0), ("c", 0)]
    assert hosts(places, 3) == [0, 2, 3]
    assert hosts(places, 5) == [0, 2, 3, 1, 0]


@pytest.mark.slow
def test_a_node_that_is_lost_with_parts_of_a_sum() -> None:
    root = Path(__file__).resolve().parents[2]
    found = subprocess.run(
        [sys.executable, "-m", "tests.cluster.sums_over_nodes"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-4000:]
    assert "nodes of the workers: 2" in found.stdout
    assert "parts of a sum were lost with their node" in found.stderr
