"""Projected and real seconds and bytes of small runs on this machine, stage by stage.

    python benchmarks/plan_accuracy.py --data cifar10_subset.npz --work DIR [--quick]

The script calibrates (`ntkpipe calibrate`) for each way of running. Then it runs fully connected networks at two sizes
and a small convolutional network, serially and with two Ray workers, each in a fresh store, and compares. On a shared
machine, wall time depends on the load of others; processor seconds of all processes of a run (user and system) depend
on it less. The model projects both. The script reports every stage of at least 3 s whose wall or processor seconds
deviate by more than 25%. The first table projects the solver's passes; with `--known-passes`, the model gets the passes
of the run. Use a machine without other load, because calibration measures its current speed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from ntkpipe.cli.session import Session
from ntkpipe.config import ClusterConfig, DataConfig, KernelConfig, PredictConfig, RunConfig, SolverConfig, StoreConfig
from ntkpipe.events.event import silent
from ntkpipe.planning.plan import make_run_plan
from ntkpipe.planning.surroundings import look_around, this_machine
from ntkpipe.run.calibrate import ProcessorSeconds, calibrate, compiling_anew
from ntkpipe.run.prepare import read_shapes
from ntkpipe.run.run_dir import RunDir
from ntkpipe.run.stages import RunAtWork
from ntkpipe.storage.store import open_store

# Stages that take at least so many seconds are held against the aim: wall and processor seconds within a quarter.
COUNTED, TOLERANCE = 3.0, 0.25


def cases(options: argparse.Namespace) -> list[tuple[str, KernelConfig, DataConfig, ClusterConfig]]:
    """Return the networks, sizes and ways of running."""
    path = options.data
    fcn, cnn = KernelConfig(), KernelConfig(kind="cnn_vec", depth=3)
    serial, ray = ClusterConfig(kind="serial"), ClusterConfig(kind="local", workers=options.workers)
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


def measure(config: RunConfig, calibrations: str) -> float:
    """Calibrate, and return the ratio of the time that processes waited for others to the time that they computed."""
    shapes, store = read_shapes(config)[0], open_store(calibrations)
    with Session() as session:
        return calibrate(config, shapes, store, lambda: session.executor(config), lambda line: None).busy


def run(config: RunConfig, folder: Path) -> tuple[dict[str, float], dict[str, float], dict[str, int], float]:
    """Return the wall and processor seconds per stage, the passes, and the bytes in the store."""
    wall, cpu = {}, {}
    # As on a machine that has never run this: programs are compiled, as calibration counts them.
    with Session() as session, compiling_anew(folder), ProcessorSeconds(0.1) as clock:

        def timed(name, work):
            began, used = time.perf_counter(), clock.seconds
            made = work()
            wall[name], cpu[name] = time.perf_counter() - began, clock.seconds - used
            return made

        executor = timed("start", lambda: session.executor(config))
        job = RunAtWork(RunDir.create(config), lambda: executor, silent)
        with job.run.held():
            timed("images", job.context)
            for stage in ("gram", "solve", "predict", "report"):
                timed(stage, getattr(job, stage))
        passes = {k: f["steps"] for k, f in job.run.receipt("solve")["kernels"].items()}
    size = sum(p.stat().st_size for p in Path(config.store.url).rglob("*") if p.is_file())
    return wall, cpu, passes, float(size)


def apart(work, *args):
    """Run in a separate process, as users run a command, in which nothing is imported or compiled yet."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(work, *args).result()


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
    for name, kernel, data, cluster in cases(options):
        if options.only not in name:
            continue
        folder = options.work / "run"
        shutil.rmtree(folder, ignore_errors=True)
        config = RunConfig(
            kernel=kernel,
            data=data,
            cluster=cluster,
            solver=SolverConfig(kind="krylov"),
            predict=PredictConfig(times=(10.0, 1e3, float("inf"))),
            store=StoreConfig(url=str(folder / "store")),
            run_dir=str(folder / "run"),
        )
        shapes, store = read_shapes(config)[0], open_store(str(options.work / "calibrations"))
        busy, load = apart(measure, config, store.url), os.getloadavg()[0]
        place, machine = look_around(config, shapes, store), this_machine(config, store)
        wall, cpu, passes, size = apart(run, config, folder)
        known = passes if options.known_passes else None
        plan = make_run_plan(config, shapes, machine, place, passes=known)
        print(
            f"\n{name}: load {load:.1f} before, calibration waited {busy:.2f} times as long as it computed; passes {passes}"
        )
        print(f"  {'stage':<9}{'projected':>11}{'wall':>9}{'ratio':>7}{'projected cpu':>15}{'cpu':>9}{'ratio':>7}")
        ratios: dict[str, list[float]] = {}
        for stage in plan.stages:
            real = wall[stage.name], cpu[stage.name]
            told = stage.seconds, stage.processor_seconds
            both = [a / max(b, 1e-9) for a, b in zip(told, real, strict=True)]
            off = max(abs(one - 1) for one in both) > TOLERANCE
            if real[0] >= COUNTED:
                ratios[stage.name] = both
            print(
                f"  {stage.name:<9}{told[0]:>9.2f} s{real[0]:>7.1f} s{both[0]:>7.2f}{told[1]:>13.2f} s{real[1]:>7.1f} s{both[1]:>7.2f}"
                + ("  OFF" if off and real[0] >= COUNTED else "")
            )
        whole = plan.seconds / sum(wall.values()), plan.processor_seconds / sum(cpu.values())
        stored = plan.stored / size
        print(
            f"  {'all':<9}{plan.seconds:>9.2f} s{sum(wall.values()):>7.1f} s{whole[0]:>7.2f}{plan.processor_seconds:>13.2f} s"
            f"{sum(cpu.values()):>7.1f} s{whole[1]:>7.2f}\n"
            f"  bytes stored {plan.stored / 1e6:.1f} MB projected, {size / 1e6:.1f} MB real: {stored:.3f}",
            flush=True,
        )
        rows.append({"case": name, "wall": whole[0], "cpu": whole[1], "bytes": stored, "load": load, "stages": ratios})
        shutil.rmtree(folder, ignore_errors=True)
    (options.work / "accuracy.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
