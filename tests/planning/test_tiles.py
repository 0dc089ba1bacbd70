"""How Gram matrices are cut into tiles, and what one takes."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkpipe.errors import ConfigError, ResourceError
from ntkpipe.gram.from_config import pair_cost
from ntkpipe.gram.plan import Rate
from ntkpipe.kernels.zoo import attention, cnn_gap, cnn_vec, fcn, myrtle
from ntkpipe.planning.text import describe_tiles
from ntkpipe.planning.tiles import choose_edge, plan_gram, worker_memory
from ntkpipe.tiles.grid import TileGrid

SPEC = fcn(3, w_std=2**0.5, b_std=0.1)
SMALL, CIFAR = pair_cost(SPEC, (8, 8, 1)), pair_cost(SPEC, (32, 32, 3))
SIZES = st.integers(1, 300)


def plan(**kwargs):
    return plan_gram(**{"n_train": 1500, "n_test": 297, "spec": SPEC, "cost": SMALL, **kwargs})


@settings(deadline=None, max_examples=60)
@given(n_train=SIZES, n_test=st.integers(0, 300), edge=st.integers(1, 100), data=st.data())
def test_pairs_are_those_of_the_tiles(n_train, n_test, edge, data) -> None:
    train_rows = data.draw(st.integers(1, n_train))
    test_rows = data.draw(st.integers(1, n_test)) if n_test else None
    p = plan(n_train=n_train, n_test=n_test, edge=edge, train_rows=train_rows, test_rows=test_rows)
    assert len(p.blocks) == (2 if n_test else 1)
    for block in p.blocks:
        tiles = [block.whole.tile(t.i, t.j) for t in block.used]
        assert block.tiles == len(tiles)
        assert block.pairs == sum(t.shape[0] * t.shape[1] for t in tiles)
    assert p.pairs == sum(b.pairs for b in p.blocks)
    assert p.flops == pytest.approx(p.pairs * p.flops_per_pair)


def test_stores_that_share_evaluations_share_the_arithmetic_and_not_the_disk() -> None:
    one, depths = plan(), plan(stores=("depth 1", "depth 3"))
    assert (depths.flops, depths.pairs, depths.tiles) == (one.flops, one.pairs, one.tiles)
    assert depths.disk_bytes == 2 * one.disk_bytes
    assert depths.memory_per_worker > one.memory_per_worker
    assert "depth 1, depth 3; from one evaluation" in describe_tiles(depths)
    assert "stores" not in describe_tiles(one)
    flips = plan(stores=("even part",), evaluations=2)
    assert flips.flops == 2 * one.flops
    assert flips.seconds_per_tile == 2 * one.seconds_per_tile
    assert (flips.pairs, flips.disk_bytes) == (one.pairs, one.disk_bytes)
    assert "two evaluations of a pair" in describe_tiles(flips)


def test_the_whole_triangle_is_half_the_square() -> None:
    p = plan(n_train=50_000, n_test=10_000, edge=2048, cost=CIFAR)
    train, test = p.blocks
    assert train.pairs == pytest.approx(50_000 * (50_000 + 2048) / 2, rel=1e-3)
    assert test.pairs == 10_000 * 50_000
    # Two float32 kernels; padding of the ragged edge is stored.
    assert p.disk_bytes == pytest.approx(2 * 4 * p.pairs, rel=0.06)
    assert p.seconds > 0


def test_a_subset_plans_fewer_tiles_of_the_same_grid() -> None:
    whole, part = plan(edge=512), plan(edge=512, train_rows=600, test_rows=100)
    assert part.blocks[0].whole == whole.blocks[0].whole
    assert [b.tiles for b in whole.blocks] == [6, 3]
    assert [b.tiles for b in part.blocks] == [3, 2]


@pytest.mark.parametrize(("n", "edge"), [(1, 64), (100, 64), (500, 128), (1500, 512), (5085, 2048), (50_000, 2048)])
def test_the_default_edge(n: int, edge: int) -> None:
    assert choose_edge(n, CIFAR) == edge


@given(n=st.integers(1, 10**6))
def test_the_default_edge_gives_several_rows_and_never_shrinks(n: int) -> None:
    edge = choose_edge(n, SMALL)
    assert 64 <= edge <= 2048
    assert edge & (edge - 1) == 0
    assert TileGrid(n, n, edge, symmetric=True).tile_rows >= 3 or n <= 128
    assert choose_edge(n + 1, SMALL) >= edge


@pytest.mark.parametrize(
    ("spec", "shape", "edge"),
    [
        (cnn_vec(3), (32, 32, 3), 2048),
        (cnn_gap(3), (32, 32, 3), 64),
        (cnn_gap(20), (32, 32, 3), 64),  # a sweep over depths has tiles of one size
        (myrtle(10, (32, 32, 3)), (32, 32, 3), 64),
        (cnn_gap(3), (8, 8, 1), 1024),
        (cnn_gap(3), (128, 128, 3), 32),
    ],
)
def test_tiles_are_smaller_where_pairs_have_more_covariances(spec, shape, edge) -> None:
    assert choose_edge(50_000, pair_cost(spec, shape)) == edge


def test_what_is_seen_of_images_counts_in_a_workers_memory() -> None:
    attended = pair_cost(attention(), (32, 32, 3))
    seen = 4 * 2048 * 1024**2 * 4  # rows, their copy, columns and more, of 1024 x 1024 numbers in float32
    assert worker_memory(2048, attended, "float32") > seen
    with pytest.raises(ResourceError, match=r"grid\.edge="):
        plan(spec=attention(), cost=attended, edge=1024, memory_bytes=8 << 30)


def test_time_is_assumed_from_the_kind_of_arithmetic() -> None:
    assert plan(cost=CIFAR).rate.flops == pytest.approx(6e10, rel=0.2)
    assert plan(cost=pair_cost(cnn_gap(3), (8, 8, 1))).rate.flops == pytest.approx(1e10, rel=0.01)


def test_a_tile_that_does_not_fit_names_the_largest_that_does() -> None:
    budget = 2 * (700 << 20)
    with pytest.raises(ResourceError, match=r"grid\.edge=(\d+)") as caught:
        plan(n_train=50_000, edge=8192, workers=2, memory_bytes=budget)
    largest = int(str(caught.value).split("grid.edge=")[1].split()[0])
    plan(n_train=50_000, edge=largest, workers=2, memory_bytes=budget)
    with pytest.raises(ResourceError):
        plan(n_train=50_000, edge=largest + 1, workers=2, memory_bytes=budget)


def test_too_many_workers_for_any_tile() -> None:
    with pytest.raises(ResourceError, match=r"fewer cluster\.workers") as caught:
        plan(workers=64, memory_bytes=1 << 30)
    assert "grid.edge=" not in str(caught.value)


def test_an_edge_beyond_the_data_is_not_paid_for() -> None:
    assert plan(edge=100_000).memory_per_worker == worker_memory(1500, SMALL, "float32")


def test_a_disk_that_is_too_small() -> None:
    p = plan()
    with pytest.raises(ResourceError, match=r"ntkpipe clean"):
        plan(free_bytes=p.disk_bytes - 1)
    plan(free_bytes=p.disk_bytes)
    plan(free_bytes=100, stored_bytes=p.disk_bytes)  # all there already


@pytest.mark.parametrize("rows", [{"train_rows": 1501}, {"test_rows": 298}])
def test_a_subset_larger_than_its_set(rows) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        plan(**rows)


def test_a_plan_is_readable() -> None:
    text = describe_tiles(plan(workers=2, rate=Rate(3e10, "measured in runs/a")))
    for part in (
        "train",
        "test",
        "1,500 x 1,500",
        "297 x 1,500",
        "512 x 512",
        "30 GF/s",
        "measured in runs/a",
        "float32",
    ):
        assert part in text


def test_float64_takes_twice_the_disk() -> None:
    double = plan(kernel_dtype="float64", store_dtype="float64")
    assert double.disk_bytes == pytest.approx(2 * plan().disk_bytes, rel=0.01)
    assert double.memory_per_worker > plan().memory_per_worker


def test_a_hundred_thousand_tiles_are_planned_at_once() -> None:
    tracemalloc.start()
    p = plan(n_train=1_000_000, n_test=10_000, edge=2048, cost=CIFAR)
    text = describe_tiles(p)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert p.tiles > 100_000
    assert peak < 5e6  # no tile is an object
    assert "TB" in text


def test_planning_needs_neither_jax_nor_zarr_nor_ray() -> None:
    code = (
        "import sys\n"
        "for name in ('jax', 'zarr', 'ray', 'numpy', 'hydra'): sys.modules[name] = None\n"
        "from ntkpipe.planning.tiles import plan_gram\n"
        "import ntkpipe.gram.progress\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
