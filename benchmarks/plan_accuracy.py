"""Projected against real seconds and bytes of small runs on this machine, stage by stage.

    python benchmarks/plan_accuracy.py --data cifar10_subset.npz --work DIR [--quick]

Calibrates (`ntkpipe calibrate`) for each way of running, then runs fully connected networks at two sizes and a small convolutional
one, serial and with two Ray workers, each in a fresh store, and compares. On a shared machine wall time says how busy the others
are; the check is processor seconds of all processes of a run (user and system), next to which wall seconds stand. Projected
processor seconds are those of a projection's resources: `compute` times the workers, the driver's, and those of the fixed costs as
calibrated. Passes of the solver are projected in the first table; with `--known-passes` those of the run are given to the model.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from pathlib import Path

from ntkpipe.cli.session import Session
from ntkpipe.config import ClusterConfig, DataConfig, KernelConfig, PredictConfig, RunConfig, StoreConfig
from ntkpipe.pipeline.calibrate import ProcessorSeconds, calibrate
from ntkpipe.pipeline.inputs import look_at
from ntkpipe.pipeline.run_dir import RunDir
from ntkpipe.pipeline.stages import Job
from ntkpipe.planning.plan import make_plan
from ntkpipe.planning.roofline import Projection
from ntkpipe.planning.sizing import of_this_machine
from ntkpipe.storage.store import open_store

STAGES = ("start", "images", "gram", "solve", "predict", "report")


def cases(options: argparse.Namespace) -> list[tuple[str, KernelConfig, DataConfig, ClusterConfig]]:
    """Networks, sizes and ways of running."""
    path = options.data
    fcn, cnn = KernelConfig(), KernelConfig(kind="cnn_vec", depth=3)
    serial, ray = ClusterConfig(kind="serial"), ClusterConfig(workers=options.workers)
    sizes = (1500, 2500) if options.quick else (2500, 5000)
    found = []
    for name, cluster in (("serial", serial), (f"Ray, {options.workers} workers", ray)):
        for n in sizes:
            found.append((f"fcn, n = {n:,}, {name}", fcn, DataConfig(kind="npz", path=path, train_size=n), cluster))
        small = DataConfig(kind="npz", path=path, train_size=800, test_size=200, downsample=2)
        found.append((f"cnn_vec 16 x 16, n = 800, {name}", cnn, small, cluster))
    if options.synthetic:
        big = DataConfig(kind="synthetic", n_train=options.synthetic, n_test=1000, shape=(32, 32, 3))
        found.append((f"fcn, n = {options.synthetic:,} (synthetic), Ray", fcn, big, ray))
    return found


def run(config: RunConfig, session: Session) -> tuple[dict[str, float], dict[str, float], dict[str, int], float]:
    """Wall and processor seconds per stage, passes, and bytes in the store."""
    wall, cpu = {}, {}
    with ProcessorSeconds(0.1) as clock:

        def timed(name, work):
            began, used = time.perf_counter(), clock.seconds
            made = work()
            wall[name], cpu[name] = time.perf_counter() - began, clock.seconds - used
            return made

        executor = timed("start", lambda: session.executor(config))
        job = Job(RunDir.create(config), lambda: executor, lambda line: None)
        with job.run.held():
            timed("images", job.inputs)
            for stage in ("gram", "solve", "predict", "report"):
                timed(stage, getattr(job, stage))
        passes = {k: f["steps"] for k, f in job.run.receipt("solve")["kernels"].items()}
    size = sum(p.stat().st_size for p in Path(config.store.url).rglob("*") if p.is_file())
    return wall, cpu, passes, float(size)


def projected_cpu(projection: Projection, fixed: dict[str, float]) -> dict[str, float]:
    """Processor seconds per stage."""
    made = {}
    for stage in projection.stages:
        total = 0.0
        for phase in stage.phases:
            total += phase.busy.get("compute", 0.0) * projection.machine.all_workers
            total += phase.busy.get("driver", 0.0) + phase.busy.get("network", 0.0)
        named = {"start": "start", "gram": "first_tile", "report": "finish"}.get(stage.name)
        starts = sum("start" in phase.busy for phase in stage.phases) - (stage.name == "solve")
        total += starts * fixed["pool"] if stage.name in ("solve", "predict") else 0.0
        total += fixed["first_solve"] if stage.name == "solve" else 0.0
        made[stage.name] = (
            fixed[named] if stage.name in ("start", "report") else total + (fixed[named] if named else 0.0)
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="npz of CIFAR-10 images")
    parser.add_argument("--work", type=Path, required=True, help="folder for stores and runs; emptied of them")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--synthetic", type=int, default=0, help="a further size, of synthetic images")
    parser.add_argument("--known-passes", action="store_true")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()
    rows = []
    calibrations = open_store(str(options.work / "calibrations"))
    for name, kernel, data, cluster in cases(options):
        if options.only not in name:
            continue
        folder = options.work / "run"
        shutil.rmtree(folder, ignore_errors=True)
        config = RunConfig(
            kernel=kernel,
            data=data,
            cluster=cluster,
            predict=PredictConfig(times=(10.0, 1e3, float("inf"))),
            store=StoreConfig(url=str(folder / "store")),
            run_dir=str(folder / "run"),
        )
        shapes, store = look_at(config)
        with Session() as session:
            made = calibrate(
                config, shapes, calibrations, lambda config=config: session.executor(config), lambda line: None
            )
        # As on a machine that has never run this: programs are compiled, as calibration counts them.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
        with Session() as session:
            load = os.getloadavg()[0]
            planned = make_plan(config, shapes, store, may_measure=False)
            wall, cpu, passes, size = run(config, session)
        known = passes if options.known_passes else None
        projection, _ = of_this_machine(config, shapes, planned, calibrations, prepared=False, passes=known)
        told = projected_cpu(projection, dict(made.cpu))
        print(
            f"\n{name}: load {load:.1f} before, calibration waited {made.busy:.2f} times as long as it computed; passes {passes}"
        )
        print(f"  {'stage':<9}{'projected':>11}{'wall':>9}{'projected cpu':>15}{'cpu':>9}{'ratio':>8}")
        for stage in projection.stages:
            a, b = told[stage.name], cpu[stage.name]
            print(
                f"  {stage.name:<9}{stage.seconds:>9.2f} s{wall[stage.name]:>7.1f} s{a:>13.2f} s{b:>7.1f} s{a / max(b, 1e-9):>8.2f}"
            )
        all_told, all_cpu, all_wall = sum(told.values()), sum(cpu.values()), sum(wall.values())
        ratios = all_told / all_cpu, projection.seconds / all_wall, projection.stored / size
        print(
            f"  {'all':<9}{projection.seconds:>9.2f} s{all_wall:>7.1f} s{all_told:>13.2f} s{all_cpu:>7.1f} s{ratios[0]:>8.2f}\n"
            f"  bytes stored {projection.stored / 1e6:.1f} MB projected, {size / 1e6:.1f} MB real: {ratios[2]:.3f}",
            flush=True,
        )
        rows.append({"case": name, "cpu": ratios[0], "wall": ratios[1], "bytes": ratios[2], "load": load})
        shutil.rmtree(folder, ignore_errors=True)
    (options.work / "accuracy.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
