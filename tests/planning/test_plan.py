"""From sizes to a plan: what is measured, when, and that stores which exist are used as they were cut."""

from __future__ import annotations

import dataclasses
import math

import pytest

from ntkpipe.config import ClusterConfig, GridConfig, KernelConfig, PredictConfig, RunConfig, SolverConfig, StoreConfig
from ntkpipe.errors import ResourceError
from ntkpipe.gram.plan import Rate
from ntkpipe.planning import memory
from ntkpipe.planning.machine import FIGURES
from ntkpipe.planning.plan import make_run_plan, plan_given
from ntkpipe.planning.probes import PairSpeed
from ntkpipe.planning.shapes import Place, Shapes
from ntkpipe.planning.surroundings import plan_here, this_machine
from ntkpipe.planning.text import describe_solver, describe_tiles
from ntkpipe.planning.tiles import TILE_SECONDS
from ntkpipe.storage.memory import MemoryStore
from ntkpipe.storage.store import open_store
from ntkpipe.tiles.store import GramStore

LARGE = Shapes("f" * 64, 50_000, 10_000, 50_000, 10_000, (32, 32, 3), 10)
SMALL = dataclasses.replace(LARGE, n_train=20, used_train=20, n_test=5, used_test=5)
POOLED = RunConfig(kernel=KernelConfig(kind="cnn_gap", depth=3), cluster=ClusterConfig(workers=2, memory_gib=64.0))


@pytest.fixture
def store(tmp_path) -> MemoryStore:
    return MemoryStore(str(tmp_path))


@pytest.fixture
def measured(monkeypatch) -> list[tuple]:
    """Measurements that are made: of 2 ms a pair."""
    calls: list[tuple] = []

    def measure(spec, image_shape, dtype, *, threads, pairs_per_step=None) -> PairSpeed:
        calls.append((image_shape, dtype, threads, pairs_per_step))
        return PairSpeed(0.002, pairs_per_step or 4, 300 << 20, {"4": 0.002, "8": 0.003}, "cpu")

    monkeypatch.setattr("ntkpipe.planning.surroundings.measure_pairs", measure)
    return calls


def test_a_long_run_is_measured_once(measured, store) -> None:
    plan = plan_here(POOLED, LARGE, store, measure=True).tiles
    assert measured == [((32, 32, 3), "float32", 1, None)]
    assert plan.pairs_per_step == 4
    assert plan.seconds == pytest.approx(plan.pairs * 0.002 / 2)
    assert plan.edge**2 * 0.002 <= TILE_SECONDS < (2 * plan.edge) ** 2 * 0.002
    assert "measured" in describe_tiles(plan)
    assert "2 ms with 4 at a time" in describe_tiles(plan)
    assert plan_here(POOLED, LARGE, store, measure=True).tiles == plan
    assert len(measured) == 1
    other = dataclasses.replace(POOLED, cluster=dataclasses.replace(POOLED.cluster, threads_per_worker=2))
    plan_here(other, LARGE, store, measure=True)
    assert len(measured) == 2


@pytest.mark.parametrize(
    ("config", "shapes"),
    [
        (POOLED, SMALL),
        (dataclasses.replace(POOLED, kernel=KernelConfig()), LARGE),
        (dataclasses.replace(POOLED, grid=GridConfig(edge=32, pairs_per_step=2)), LARGE),
    ],
    ids=["short", "flat", "given"],
)
def test_what_needs_no_measurement_gets_none(measured, store, config: RunConfig, shapes: Shapes) -> None:
    plan = plan_here(config, shapes, store, measure=True).tiles
    assert not measured
    assert plan.pairs_per_step == config.grid.pairs_per_step
    assert "assumed" in describe_tiles(plan)


def test_later_commands_measure_nothing(measured, store) -> None:
    assert "assumed" in describe_tiles(plan_here(POOLED, LARGE, store).tiles)
    assert not measured


def test_a_given_edge_is_kept_and_pairs_are_measured(measured, store) -> None:
    config = dataclasses.replace(POOLED, grid=GridConfig(edge=48))
    plan = plan_here(config, LARGE, store, measure=True).tiles
    assert (plan.edge, plan.pairs_per_step) == (48, 4)
    assert len(measured) == 1


def test_a_store_that_exists_is_used_as_it_was_cut(measured, store) -> None:
    cut = dataclasses.replace(POOLED, grid=GridConfig(edge=40))
    identity = plan_here(cut, LARGE, store).stores[0].identity
    GramStore.create_or_open(store, identity)
    found = plan_here(POOLED, LARGE, store)
    assert found.tiles.edge == 40
    assert found.stores[0].identity == identity
    # Not one of another kernel or precision.
    for kernel in (KernelConfig(kind="cnn_gap", depth=4), KernelConfig(kind="cnn_gap", depth=3, dtype="float64")):
        assert plan_here(dataclasses.replace(POOLED, kernel=kernel), LARGE, store).tiles.edge != 40


def test_the_rate_is_that_of_a_pair(measured, store) -> None:
    plan = plan_here(POOLED, LARGE, store, measure=True).tiles
    assert isinstance(plan.rate, Rate)
    assert plan.rate.flops == pytest.approx(plan.flops_per_pair / 0.002)


def test_the_driver_has_the_memory_of_its_own_machine(store) -> None:
    """Of a joined cluster the budget is that of all nodes, and the driver is on one of them."""
    cluster = ClusterConfig(kind="ray", workers=128, memory_gib=4000.0)
    config = dataclasses.replace(POOLED, kernel=KernelConfig(), cluster=cluster)
    local = dataclasses.replace(config, cluster=ClusterConfig(kind="local", workers=128, memory_gib=4000.0))
    free, budget = int((8 << 30) / 0.6), 4000 << 30
    drivers = {one.cluster.kind: memory.driver_memory(one, budget, free) for one in (local, config)}
    assert drivers == {"local": budget, "ray": pytest.approx(8 << 30)}
    # A basis fits into what the driver's machine has.
    rooms = [memory.Room.of(one, budget, 128, drivers[one.cluster.kind]) for one in (config, local)]
    bases = [8 * 50_000 * memory.basis_capacity(config.solver, 50_000, 10, 0, room) for room in rooms]
    assert bases[0] <= 8 << 30
    assert bases[1] > 1000 << 30

    def plan(config: RunConfig, free: int = free):
        return make_run_plan(config, LARGE, this_machine(config, store), Place(free_memory=free))

    text = describe_solver(plan(config))
    assert "in the driver, whose budget is 8.59 GB" in text
    assert "in the workers, all nodes together" in text
    assert "MORE THAN" not in text
    assert "all processes together" in describe_solver(plan(local))
    found = plan(config).stage("solve").memory
    assert found.driver < 8 << 30 < found.workers
    eigh = dataclasses.replace(config, solver=SolverConfig(kind="eigh"))
    with pytest.raises(ResourceError, match=r"the driver's machine has 8\.59 GB"):
        plan(eigh)
    plan(dataclasses.replace(eigh, cluster=local.cluster))
    kept = dataclasses.replace(config, solver=SolverConfig(basis_gib=20.0))
    assert "exceeds this machine's memory" in describe_solver(plan(kept, 700 << 20))


def test_the_same_values_give_the_same_plan(store) -> None:
    machine, place = this_machine(POOLED, store), Place(free_memory=64 << 30, free_disk=1 << 40)
    one, two = (make_run_plan(POOLED, LARGE, machine, place) for _ in range(2))
    assert one == two
    assert str(one) == str(two)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.stages = ()


def test_a_plan_looks_at_nothing_but_its_arguments(monkeypatch, store) -> None:
    """No clock, no process, no file, no free memory."""
    machine = this_machine(POOLED, store)
    for name in ("time.time", "time.monotonic", "time.perf_counter", "time.process_time", "subprocess.Popen"):
        monkeypatch.setattr(name, lambda *_, name=name, **__: pytest.fail(name))
    for name in ("free_memory", "memory", "processors"):
        monkeypatch.setattr(f"ntkpipe.limits.{name}", lambda name=name: pytest.fail(name))
    monkeypatch.setattr("builtins.open", lambda *a, **_: pytest.fail(f"open{a}"))
    for gram in ("stored", "recompute", "auto"):
        for solver in ("krylov", "cg", "cholesky", "eigh"):
            config = dataclasses.replace(
                POOLED,
                kernel=KernelConfig(),
                store=StoreConfig(gram=gram),
                solver=SolverConfig(kind=solver),
                predict=PredictConfig(times=(math.inf,)),
            )
            made = make_run_plan(config, LARGE, machine, Place(free_memory=800 << 30, free_disk=1 << 40))
            assert [stage.name for stage in made.stages] == ["start", "images", "gram", "solve", "predict", "report"]
            assert str(made)
            assert made._repr_html_().count("<tr>") == 8


def test_planning_writes_nothing_and_starts_nothing(monkeypatch, tmp_path) -> None:
    """A network whose pairs a run would measure, and a way of storing for which a run would measure the disk."""
    config = dataclasses.replace(POOLED, store=StoreConfig(url=str(tmp_path / "store"), gram="auto"))
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a process"))
    plan_here(config, LARGE, open_store(config.store.url))
    assert list(tmp_path.rglob("*")) == []


def test_what_the_disk_lacks_is_refused_and_auto_recomputes(store) -> None:
    config = dataclasses.replace(POOLED, kernel=KernelConfig())
    machine, place = this_machine(config, store), Place(free_memory=64 << 30, free_disk=10 << 20)
    with pytest.raises(ResourceError, match=r"choose another store\.url"):
        make_run_plan(config, LARGE, machine, place)
    auto = make_run_plan(dataclasses.replace(config, store=StoreConfig(gram="auto")), LARGE, machine, place)
    assert auto.storing.stored is auto.tiles.stored is False
    begun = dataclasses.replace(place, begun=True, free_disk=None)
    stays = make_run_plan(dataclasses.replace(config, store=StoreConfig(gram="auto")), LARGE, machine, begun)
    assert stays.tiles.stored is True


def test_tiles_that_are_there_take_no_time(store) -> None:
    config = dataclasses.replace(POOLED, kernel=KernelConfig())
    machine = this_machine(config, store)
    new = make_run_plan(config, LARGE, machine, Place(free_memory=64 << 30))
    half = make_run_plan(config, LARGE, machine, Place(free_memory=64 << 30, stored_bytes=new.tiles.disk_bytes // 2))
    done = make_run_plan(config, LARGE, machine, Place(free_memory=64 << 30, stored_bytes=new.tiles.disk_bytes))
    seconds = [plan.stage("gram").seconds - machine.first_tile.value for plan in (new, half, done)]
    assert seconds[1] == pytest.approx(seconds[0] / 2, rel=0.05)
    assert seconds[2] < 0.02 * seconds[0]


def test_matrices_that_were_given_are_solved_with_alone(store) -> None:
    shapes = dataclasses.replace(LARGE, image=(0, 0, 0))
    plan = plan_given(
        dataclasses.replace(POOLED, kernel=KernelConfig()),
        shapes,
        this_machine(POOLED, store),
        Place(free_memory=64 << 30),
        dtype="float32",
        edge=2048,
    )
    assert [stage.name for stage in plan.stages] == ["start", "solve", "predict", "report"]
    assert (plan.stores, plan.storing) == ((), None)
    text = str(plan)
    assert "109 (gram)" in text  # 0.74 of 147
    assert "nngp" not in text.lower()
    assert plan._repr_html_().count("<tr>") == 6


def test_a_plan_says_where_its_figures_come_from(store) -> None:
    plan = plan_here(dataclasses.replace(POOLED, kernel=KernelConfig()), LARGE, store)
    assert "ntkpipe calibrate measures this machine" in str(plan)
    assert all(figure.origin for figure in plan.machine.figures().values())
    assert sum(plan.machine.kinds_of_origins().values()) == len(FIGURES)
