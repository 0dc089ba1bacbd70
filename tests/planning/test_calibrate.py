"""A calibration, tiny: what is measured is kept, sealed, found again, and used by plans."""

from __future__ import annotations

import dataclasses
import json
import math
import os

import jax
import pytest

from ntkpipe.config import ClusterConfig, DataConfig, KernelConfig, PredictConfig, RunConfig, StoreConfig
from ntkpipe.errors import CorruptionError
from ntkpipe.planning.measured import Calibration, calibration_key, find_calibration
from ntkpipe.planning.probes import PairSpeed
from ntkpipe.planning.surroundings import plan_here
from ntkpipe.planning.text import describe_tiles
from ntkpipe.run import calibrate as measuring
from ntkpipe.run.calibrate import Effort, ProcessorSeconds, calibrate
from ntkpipe.run.prepare import read_shapes
from ntkpipe.tasks.serial import SerialExecutor

TINY = Effort(size=64, seconds=0.01, objects=1, tasks=3, images=24)


@pytest.fixture
def config(tmp_path) -> RunConfig:
    return RunConfig(
        data=DataConfig(kind="synthetic", n_train=40, n_test=8, shape=(4, 4, 1)),
        kernel=KernelConfig(depth=1),
        predict=PredictConfig(times=(math.inf,)),
        cluster=ClusterConfig(kind="serial"),
        store=StoreConfig(url=str(tmp_path / "store")),
        run_dir=str(tmp_path / "run"),
    )


@pytest.fixture
def made(config: RunConfig, monkeypatch) -> Calibration:
    def measure(spec, image_shape, dtype, *, threads, edge=None) -> PairSpeed:
        assert (threads, edge) == (1, 64)
        return PairSpeed(2e-6 if dtype == "float32" else 4e-6, 1, 1, {}, "cpu")

    monkeypatch.setattr(measuring, "measure_pairs", measure)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shapes, store = read_shapes(config)
    told: list[str] = []
    with ProcessorSeconds() as clock:
        found = calibrate(config, shapes, store, lambda: SerialExecutor(1), told.append, TINY)
    assert clock.seconds > 0
    assert told
    return found


def test_calibrate_and_plan(config: RunConfig, made: Calibration, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shapes, store = read_shapes(config)
    assert find_calibration(config, store) == made
    may_be_zero = {"start", "first_tile", "first_solve", "pool", "step", "latency"}
    assert all(value > 0 or name in may_be_zero for name, value in made.figures.items())
    assert sorted(made.pairs.values()) == [2e-6, 4e-6]
    text = made.describe()
    assert "all processes ran on one machine" in text
    assert "GF/s" in text
    # Nothing that measuring wrote is left but the records.
    assert {key.partition("-")[0] for key in store.list("tuning/")} == {"tuning/calibration", "tuning/disk"}

    plan = plan_here(config, shapes, store)
    assert plan.tiles.seconds == pytest.approx(plan.tiles.pairs * 2e-6)
    told = describe_tiles(plan.tiles)
    assert f"by ntkpipe calibrate, {made.made}" in told
    assert "assumed" not in told
    assert f"measured {made.made}" in str(plan)
    assert plan.machine.skinny_float64.value == made.figures["skinny_float64"]
    assert plan.machine.first_tile.used == made.cpu["first_tile"]
    gram = plan.stage("gram")
    # Half of 40 x 40, and 8 x 40 pairs, diagonals in float64, and what was measured for the first tile.
    compute = next(phase.busy["compute"] for phase in gram.phases if "compute" in phase.busy)
    assert compute >= (40 * 40 / 2 + 8 * 40) * 2e-6 + 48 * 4e-6
    assert "this machine" in str(plan)
    # Other numbers of workers, and other versions, were not measured.
    other = dataclasses.replace(config, cluster=ClusterConfig(workers=7))
    assert find_calibration(other, store) is None


def test_damage_is_no_calibration(config: RunConfig, made: Calibration) -> None:
    _, store = read_shapes(config)
    key, data = calibration_key(config), made.to_bytes()
    assert Calibration.from_bytes(data, key) == made
    store.put(key, data.replace(b'"busy": ', b'"busy": 1'), overwrite=True)
    assert find_calibration(config, store) is None
    with pytest.raises(CorruptionError, match="damaged"):
        Calibration.from_bytes(b"{}", key)
    fewer = {name: value for name, value in made.figures.items() if name != "pool"}
    old = dataclasses.replace(made, figures=fewer)
    with pytest.raises(CorruptionError, match="another version"):
        Calibration.from_bytes(old.to_bytes(), key)
    assert json.loads(data)["machine"]["workers"] == 1


def test_programs_that_were_compiled_before_do_not_count_as_free(tmp_path) -> None:
    before = jax.config.jax_compilation_cache_dir
    with measuring.compiling_anew(tmp_path):
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compiled")
        assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "compiled")
    assert jax.config.jax_compilation_cache_dir == before
