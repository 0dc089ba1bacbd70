"""Projections against the formulas, worked out by hand, and against what they must do whatever the numbers."""

from __future__ import annotations

import dataclasses
import math

import pytest

from ntkpipe.cli.folder import profiles
from ntkpipe.config import ClusterConfig, KernelConfig, PredictConfig, RunConfig, SolverConfig, StoreConfig
from ntkpipe.errors import ConfigError
from ntkpipe.gram.plan import GramPlan
from ntkpipe.planning.allreduce_cost import allreduce_cost, at_the_driver
from ntkpipe.planning.machine import FIGURES, Figure, Machine, load_profile
from ntkpipe.planning.network import traffic
from ntkpipe.planning.passes import expected_passes
from ntkpipe.planning.plan import RunPlan, make_run_plan
from ntkpipe.planning.roofline import Phase, Stage
from ntkpipe.planning.shapes import Shapes, spec_for
from ntkpipe.planning.surroundings import on_profile
from ntkpipe.planning.text import compare_ways, describe_stages
from ntkpipe.tiles.segment import SEGMENT

CIFAR = Shapes("f" * 64, 50_000, 10_000, 50_000, 10_000, (32, 32, 3), 10)
CONFIG = RunConfig(
    predict=PredictConfig(kernels=("ntk",), times=(math.inf,)),
    solver=SolverConfig(kind="krylov"),
    cluster=ClusterConfig(workers=1),
)
FREE = (
    "start",
    "first_tile",
    "first_solve",
    "pool",
    "step",
    "finish",
    "task",
    "record",
    "latency",
    "store_latency",
    "cache",
    "price",
)
NAMES = sorted(p.stem for p in profiles().glob("*.yaml"))


def machine(**figures: float) -> Machine:
    """Everything is free but what is given: 1e30 a second, and no time to start."""
    plain = (
        dict.fromkeys(FIGURES, 1e30)
        | dict.fromkeys(FREE, 0.0)
        | {"nodes": 1, "workers": 1, "threads": 1, "driver_threads": 1}
    )
    return Machine.of("made up", {name: [value, "test"] for name, value in (plain | figures).items()})


def computed(plan: GramPlan, blocks: int = 2) -> float:
    """Pairs that are evaluated: of tiles on the diagonal one triangle."""
    total = 0.0
    for block in plan.blocks[:blocks]:
        for tile in block.used:
            whole = block.whole.tile(tile.i, tile.j)
            half = block.block == "train" and tile.i == tile.j
            total += whole.shape[0] * whole.shape[1] / (2 if half else 1)
    return total


def stage(plan: RunPlan, name: str) -> Stage:
    return plan.stage(name)


@pytest.mark.parametrize("name", NAMES)
def test_profiles_state_the_origin_of_every_number(name: str) -> None:
    loaded = load_profile(name, profiles())
    assert all(getattr(loaded, figure).origin for figure in FIGURES)
    assert len(loaded.origins()) == len(FIGURES)
    found = on_profile(CONFIG, CIFAR, loaded, 50_000, stored=True)
    assert 0 < found.seconds < 10 * 86400
    assert found.cost == pytest.approx(found.seconds / 3600 * loaded.nodes.value * loaded.price.value)


def test_a_profile_of_ones_own(tmp_path) -> None:
    text = (profiles() / "cpu16x64.yaml").read_text()
    mine = tmp_path / "mine.yaml"
    mine.write_text(text.replace("nodes: [16, assumed]", "nodes: {value: 3, origin: counted}"))
    loaded = load_profile(str(mine), profiles())
    assert (loaded.name, loaded.nodes.value, loaded.nodes.origin) == ("mine", 3.0, "counted")
    assert loaded.overridden({"nodes": 5}).all_workers == 5 * 64
    for bad, said in (
        (text.replace("nodes: [16, assumed]", ""), "lacks nodes"),
        (text + "\nnode: [1, x]", "unknown figures node"),
        (text.replace("nodes: [16, assumed]", "nodes: [1.5, x]"), "a whole number above 0"),
        (text.replace("nodes: [16, assumed]", "nodes: 16"), r"must be \[number, origin\]"),
        (text.replace("store_read: [2.0e+10", "store_read: [-2"), "above 0"),
        ("a: [", "is not YAML"),
        ("- 1", "must be a mapping"),
    ):
        mine.write_text(bad)
        with pytest.raises(ConfigError, match=said):
            load_profile(str(mine), profiles())
    with pytest.raises(ConfigError, match="choose one of cpu16x64"):
        load_profile("nothing", profiles())
    with pytest.raises(ConfigError, match=r"profile\.price=nan"):
        loaded.overridden({"price": math.nan})


def test_gram_is_the_busiest_of_its_resources() -> None:
    pairs = computed(on_profile(CONFIG, CIFAR, machine(), 50_000, stored=True).tiles)
    compute = stage(on_profile(CONFIG, CIFAR, machine(matrix_float32=1e12), 50_000, stored=True), "gram")
    assert compute.seconds == pytest.approx(pairs * 6144 / 1e12, rel=1e-9)
    assert compute.bottleneck == "compute"
    slow = on_profile(CONFIG, CIFAR, machine(store_write=1e9, matrix_float32=1e12), 50_000, stored=True)
    found = stage(slow, "gram")
    assert found.bottleneck == "store"
    assert found.seconds == pytest.approx(slow.tiles.disk_bytes / 1e9)
    scheduled = stage(on_profile(CONFIG, CIFAR, machine(record=1.0, matrix_float32=1e12), 50_000, stored=True), "gram")
    assert scheduled.bottleneck == "scheduler"
    assert scheduled.seconds == slow.tiles.tiles


def test_workers_share_tiles_and_the_last_round_is_whole() -> None:
    seconds = {}
    for workers in (1, 2, 4, 10_000):
        made = on_profile(CONFIG, CIFAR, machine(workers=workers, matrix_float32=1e12), 50_000, stored=True)
        seconds[workers], plan = stage(made, "gram").seconds, made.tiles
    assert seconds[2] == pytest.approx(seconds[1] / 2, rel=0.02)
    assert seconds[4] == pytest.approx(seconds[1] / 4, rel=0.03)
    # Nothing is faster than one tile.
    assert seconds[10_000] == pytest.approx(computed(plan) / plan.tiles * 6144 / 1e12, rel=1e-9)


def test_passes_of_krylov() -> None:
    n, c, passes = 50_000, 9, 100
    for figures, seconds, bottleneck in (
        (
            {"tile_bandwidth": 0, "skinny_float64": 1e12, "memory": 1e30},
            (1.15 * passes + 2) * 2 * n**2 * c / 1e12,
            "compute",
        ),
        ({"factor_float64": 1e12}, 20 * (c * passes) ** 3 / 1e12, "driver"),
        ({"orthogonalise": 1e12}, 1.2 * 4 * n * (c * passes) ** 2 / 2 / 1e12, "driver"),
        ({"network": 1e9}, passes * 8 * n * c * 2 / 1e9, "network"),
        ({"latency": 1.0}, passes * 1.0, "network"),
        ({"pool": 3.0}, 3.0, "start"),
    ):
        found = stage(on_profile(CONFIG, CIFAR, machine(**figures), n, stored=True, passes=passes), "solve")
        assert found.seconds == pytest.approx(seconds, rel=0.02), figures
        assert found.bottleneck == bottleneck


def test_vectors_travel_to_the_driver_once_where_there_are_nodes() -> None:
    b = 8.0 * 10**6 * 9
    one = allreduce_cost(machine(nodes=1, workers=8, network=1e9), b)
    assert one == at_the_driver(machine(nodes=1, workers=8, network=1e9), b)
    assert one.links == pytest.approx(9 * b / 1e9)
    # As measured: four links of 200 Mbit/s and parts of 18 MB, 2.98 s against 5.43 s at the driver.
    slow = machine(nodes=4, workers=1, network=25e6)
    assert allreduce_cost(slow, 18e6).links == pytest.approx(2.98, rel=0.1)
    assert at_the_driver(slow, 18e6).links == pytest.approx(5.43, rel=0.1)
    for nodes, times in ((4, 4), (16, 6), (64, 7)):
        many = machine(nodes=nodes, workers=8, network=5e9)
        assert allreduce_cost(many, b).seconds < at_the_driver(many, b).seconds / times
    assert all(allreduce_cost(machine(nodes=k, workers=8, network=5e9), 1e3).moved == 1e3 * 9 * k for k in (1, 5))


def test_what_memory_does_not_hold_is_read_or_computed_on_every_pass() -> None:
    n, passes = 50_000, 100
    config = dataclasses.replace(CONFIG, grid=dataclasses.replace(CONFIG.grid, edge=500))
    kernel = n * (n + 500) / 2 * 4
    half = {"memory": kernel / 2, "store_read": 1e9, "matrix_float32": 1e12}
    read = stage(on_profile(config, CIFAR, machine(**half), n, stored=True, passes=passes), "solve")
    assert read.bottleneck == "store"
    assert read.read == pytest.approx(kernel * (2 + 100 / 2), rel=1e-6)
    assert read.seconds == pytest.approx(read.read / 1e9, rel=1e-3)
    made = on_profile(config, CIFAR, machine(**half), n, stored=False, passes=passes)
    once = computed(made.tiles, 1) * 6144 / 1e12
    # Room for the tile at work is no room for kept ones.
    held = (kernel / 2 - made.tiles.memory_per_worker) / kernel
    assert stage(made, "solve").seconds == pytest.approx(once * (1 + 100 * (1 - held)), rel=1e-3)
    assert (stage(made, "solve").read, stage(made, "gram").written) == (0, 0)
    assert made.stored < read.read / 10


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("kind", ["krylov", "cg", "cholesky", "eigh"])
def test_more_images_take_longer(name: str, stored: bool, kind: str) -> None:
    config = dataclasses.replace(CONFIG, solver=SolverConfig(kind=kind))
    loaded = load_profile(name, profiles())
    seconds = [
        on_profile(config, CIFAR, loaded, n, stored=stored).seconds for n in (2_000, 50_000, 1_000_000, 5_000_000)
    ]
    assert seconds == sorted(seconds)


def test_passes_are_those_that_were_measured() -> None:
    for kernel, n, passes in (
        *(("ntk", n, p) for n, p in ((2_500, 41), (5_000, 56), (10_000, 78), (50_000, 147))),
        *(("nngp", n, p) for n, p in ((2_500, 53), (5_000, 74), (50_000, 247))),
    ):
        assert expected_passes(kernel, n) == pytest.approx(passes, rel=0.05)


def test_covariances_move_between_layers() -> None:
    config = dataclasses.replace(CONFIG, kernel=KernelConfig(kind="myrtle10"))
    # docs/performance.md: 63 MB in float32.
    assert 4 * traffic(spec_for(config.kernel, CIFAR), CIFAR.image) == pytest.approx(63e6, rel=0.02)
    assert traffic(spec_for(CONFIG.kernel, CIFAR), CIFAR.image) < 100


def test_tables_name_what_does_not_fit() -> None:
    loaded = load_profile("h200x8x16", profiles())
    ways = [on_profile(CONFIG, CIFAR, loaded, 20_000_000, stored=stored) for stored in (True, False)]
    text = describe_stages(ways[0])
    for word in ("20,000,000 points", "solver.max_steps", "network", "stay in the workers' memory"):
        assert word in text
    assert "times faster" in compare_ways(*ways)
    small = loaded.overridden({"driver_memory": 1e9})
    assert "the basis takes" in describe_stages(on_profile(CONFIG, CIFAR, small, 1_000_000, stored=True))


def test_a_stage_waits_for_its_busiest() -> None:
    made = Stage("x", (Phase({"a": 1.0, "b": 2.0}), Phase({"a": 3.0}), Phase({"b": 0.5})))
    assert (made.seconds, made.bottleneck) == (5.5, "a")


def test_receipts_are_packed_beside_the_loop_that_sends_tasks() -> None:
    plan = on_profile(CONFIG, CIFAR, machine(record=1e-3, store_latency=1e-2), 50_000, stored=True)
    busy = plan.stage("gram").phases[-1].busy
    assert busy["scheduler"] == pytest.approx(plan.tiles.tiles * 1e-3)
    # A thousand receipts are read and deleted, 16 at a time, and one segment is put.
    assert busy["packing"] == pytest.approx(plan.tiles.tiles / SEGMENT * (2 * SEGMENT / 16 + 3) * 1e-2)
    assert plan.stage("gram").bottleneck == "packing"
    assert plan.stage("gram").seconds == busy["packing"]


@pytest.mark.parametrize("kind", ["krylov", "cg", "cholesky", "eigh"])
def test_processor_seconds_count_every_thread(kind: str) -> None:
    """Rates are those of all threads of a worker: twice as many threads, in the same time, are twice as many processor seconds."""
    config = dataclasses.replace(CONFIG, solver=SolverConfig(kind=kind))
    figures = {"skinny_float64": 1e10, "factor_float64": 1e10, "tile_bandwidth": 0, "matrix_float32": 1e12}
    figures |= {"orthogonalise": 1e12}
    one, two = (
        on_profile(config, CIFAR, machine(**figures, threads=k, driver_threads=k), 5_000, stored=True) for k in (1, 2)
    )
    assert one.seconds == pytest.approx(two.seconds)
    assert two.processor_seconds == pytest.approx(2 * one.processor_seconds, rel=1e-3)
    assert one.processor_seconds == pytest.approx(one.seconds, rel=1e-3)
    workers = on_profile(config, CIFAR, machine(**figures, workers=2), 5_000, stored=True)
    assert workers.processor_seconds == pytest.approx(one.processor_seconds, rel=0.05)


def test_fixed_costs_count_what_was_measured_of_all_processes() -> None:
    start = Machine.of("made up", {**machine().figures(), "start": Figure(3.0, "measured", 7.0)})
    made = on_profile(CONFIG, CIFAR, start, 5_000, stored=True).stage("start")
    assert (made.seconds, made.processor_seconds) == (3.0, 7.0)


@pytest.mark.parametrize("kind", ["krylov", "cg", "cholesky", "eigh"])
def test_one_source_of_every_rate(kind: str) -> None:
    """What is printed of the solver and what decides how tiles are kept follow the rates that the stages are made of."""
    config = dataclasses.replace(CONFIG, solver=SolverConfig(kind=kind), store=StoreConfig(gram="auto"))
    for factor in (1.0, 0.1):
        figures = {f"{name}_float64": 1e10 * factor for name in ("skinny", "factor")} | {"tile_bandwidth": 0}
        plan = make_run_plan(config, CIFAR, machine(**figures))
        assert plan.storing is not None
        told = plan.storing.stored_seconds if plan.storing.stored else plan.storing.recomputed_seconds
        assert told == pytest.approx(sum(plan.stage(name).seconds for name in ("gram", "solve", "predict")))


def test_variances_are_part_of_predictions() -> None:
    figures = {"skinny_float64": 1e10, "tile_bandwidth": 0, "memory": 1e12}
    plain = make_run_plan(CONFIG, CIFAR, machine(**figures))
    predict = dataclasses.replace(CONFIG.predict, covariance="diagonal")
    made = make_run_plan(dataclasses.replace(CONFIG, predict=predict), CIFAR, machine(**figures))
    assert made.stage("predict").seconds > 10 * plain.stage("predict").seconds
    assert made.stage("solve") == plain.stage("solve")
    assert "covariance  diagonal" in str(made)
