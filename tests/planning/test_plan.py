"""From sizes to a plan: what is measured, when, and that stores which exist are used as they were cut."""

from __future__ import annotations

import dataclasses

import pytest

from ntkpipe.config import ClusterConfig, GridConfig, KernelConfig, RunConfig, SolverConfig
from ntkpipe.errors import ResourceError
from ntkpipe.gram.plan import TILE_SECONDS, Rate
from ntkpipe.planning import memory
from ntkpipe.planning.forecast import describe_solver, peaks
from ntkpipe.planning.pair_speed import Tuning
from ntkpipe.planning.plan import Shapes, make_plan
from ntkpipe.storage.memory import MemoryStore
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

    def measure(spec, image_shape, dtype, *, threads, pairs_per_step=None) -> Tuning:
        calls.append((image_shape, dtype, threads, pairs_per_step))
        return Tuning(0.002, pairs_per_step or 4, 300 << 20, {"4": 0.002, "8": 0.003}, "cpu")

    monkeypatch.setattr("ntkpipe.planning.plan.measure", measure)
    return calls


def test_a_long_run_is_measured_once(measured, store) -> None:
    plan = make_plan(POOLED, LARGE, store).plan
    assert measured == [((32, 32, 3), "float32", 1, None)]
    assert plan.pairs_per_step == 4
    assert plan.seconds == pytest.approx(plan.pairs * 0.002 / 2)
    assert plan.edge**2 * 0.002 <= TILE_SECONDS < (2 * plan.edge) ** 2 * 0.002
    assert "measured" in plan.describe()
    assert "2 ms with 4 at a time" in plan.describe()
    assert make_plan(POOLED, LARGE, store).plan == plan
    assert len(measured) == 1
    other = dataclasses.replace(POOLED, cluster=dataclasses.replace(POOLED.cluster, threads_per_worker=2))
    make_plan(other, LARGE, store)
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
    plan = make_plan(config, shapes, store).plan
    assert not measured
    assert plan.pairs_per_step == config.grid.pairs_per_step
    assert "assumed" in plan.describe()


def test_later_commands_measure_nothing(measured, store) -> None:
    assert "assumed" in make_plan(POOLED, LARGE, store, may_measure=False).plan.describe()
    assert not measured


def test_a_given_edge_is_kept_and_pairs_are_measured(measured, store) -> None:
    config = dataclasses.replace(POOLED, grid=GridConfig(edge=48))
    plan = make_plan(config, LARGE, store).plan
    assert (plan.edge, plan.pairs_per_step) == (48, 4)
    assert len(measured) == 1


def test_a_store_that_exists_is_used_as_it_was_cut(measured, store) -> None:
    cut = dataclasses.replace(POOLED, grid=GridConfig(edge=40))
    identity = make_plan(cut, LARGE, store).wanted[0].identity
    GramStore.create_or_open(store, identity)
    found = make_plan(POOLED, LARGE, store)
    assert found.plan.edge == 40
    assert found.wanted[0].identity == identity
    # Not one of another kernel or precision.
    for kernel in (KernelConfig(kind="cnn_gap", depth=4), KernelConfig(kind="cnn_gap", depth=3, dtype="float64")):
        assert make_plan(dataclasses.replace(POOLED, kernel=kernel), LARGE, store).plan.edge != 40


def test_the_rate_is_that_of_a_pair(measured, store) -> None:
    plan = make_plan(POOLED, LARGE, store).plan
    assert isinstance(plan.rate, Rate)
    assert plan.rate.flops == pytest.approx(plan.flops_per_pair / 0.002)


def test_the_driver_has_the_memory_of_its_own_machine(monkeypatch, store) -> None:
    """Of a joined cluster the budget is that of all nodes, and the driver is on one of them."""
    cluster = ClusterConfig(kind="ray", workers=128, memory_gib=4000.0)
    config = dataclasses.replace(POOLED, kernel=KernelConfig(), cluster=cluster)
    local = dataclasses.replace(config, cluster=ClusterConfig(workers=128, memory_gib=4000.0))
    monkeypatch.setattr(memory, "free_share", lambda: 8 << 30)
    budget = 4000 << 30
    assert memory.driver_memory(local, budget) == budget
    assert memory.driver_memory(config, budget) == 8 << 30
    # A basis fits into what the driver's machine has.
    assert memory.basis_vectors(config, 50_000, 10, budget, 128) * 8 * 50_000 <= 8 << 30
    assert memory.basis_vectors(local, 50_000, 10, budget, 128) * 8 * 50_000 > 1000 << 30
    plan = make_plan(config, LARGE, store).plan
    text = describe_solver(config, LARGE, plan)
    assert "in the driver, of 8.59 GB that it may take on this machine" in text
    assert "in the workers, all nodes together" in text
    assert "MORE THAN" not in text
    assert "all processes together" in describe_solver(local, LARGE, make_plan(local, LARGE, store).plan)
    found = peaks(config, LARGE, plan)
    assert found.driver < 8 << 30 < found.workers
    eigh = dataclasses.replace(config, solver=SolverConfig(kind="eigh"))
    with pytest.raises(ResourceError, match=r"the driver's machine has 8\.59 GB"):
        make_plan(eigh, LARGE, store)
    make_plan(dataclasses.replace(eigh, cluster=local.cluster), LARGE, store)
    kept = dataclasses.replace(config, solver=SolverConfig(basis_gib=20.0))
    monkeypatch.setattr(memory, "free_share", lambda: 700 << 20)
    assert "MORE THAN THIS MACHINE HAS" in describe_solver(kept, LARGE, plan)
