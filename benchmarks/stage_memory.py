"""Memory of the Gram and solve stages compared with the plan and with the budget, at several sizes, on real images.

The script runs `ntkpipe run` and samples the memory of all its processes (proportional set sizes, four times a second).
It compares the peak of each stage with the plan of the same settings and with `cluster.memory_gib`:

    python benchmarks/stage_memory.py --data cifar10_subset.npz --work DIR [--sizes 1250,2500,5000] [--solvers krylov,cholesky,cg,eigh]

Linux only (/proc).
"""

from __future__ import annotations

import argparse
import datetime
import shutil
import subprocess
import sys
import time
from pathlib import Path

from processes import Sampler

from ntkpipe.planning.plan import make_run_plan
from ntkpipe.planning.surroundings import look_around, this_machine
from ntkpipe.run.prepare import read_shapes
from ntkpipe.run.run_dir import RunDir


def planned(run: RunDir) -> dict[str, int]:
    """Return the planned peaks of the stages in bytes, for the passes of the run."""
    config = run.config
    shapes, store = read_shapes(config)
    facts = run.require("solve")["kernels"]
    passes = {} if config.solver.kind in ("cholesky", "eigh") else {name: f["steps"] for name, f in facts.items()}
    plan = make_run_plan(config, shapes, this_machine(config, store), look_around(config, shapes, store), passes=passes)
    return {"solve": plan.stage("solve").memory.together}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--work", required=True, type=Path, help="a folder for everything; what is in it goes")
    parser.add_argument("--sizes", default="1250,2500,5000")
    parser.add_argument("--solvers", default="krylov,cholesky,cg,eigh")
    parser.add_argument("--memory-gib", type=float, default=4.0)
    options, overrides = parser.parse_known_args()
    good = True
    print("solver    n      solve: measured  planned  ratio    all stages  budget")
    for solver in options.solvers.split(","):
        for n in options.sizes.split(","):
            shutil.rmtree(options.work, ignore_errors=True)
            options.work.mkdir(parents=True)
            times = "[inf]" if solver in ("cholesky", "cg") else "[1e4,inf]"
            command = [
                *(sys.executable, "-m", "ntkpipe", "run", "data=npz", f"data.path={options.data.resolve()}"),
                *(f"data.train_size={n}", "data.test_size=500", f"solver={solver}", f"predict.times={times}"),
                *("predict.ridges=[1e-4]", f"cluster.memory_gib={options.memory_gib}", "grid.edge=1024"),
                *(f"store.url={options.work / 'store'}", f"run_dir={options.work / 'run'}", *overrides),
            ]
            began = time.time()
            process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
            sampler = Sampler(process.pid, every=0.25)
            sampler.start()
            _, text = process.communicate()
            sampler.stopped.set()
            sampler.join()
            if process.returncode:
                sys.exit(text[-3000:])
            run = RunDir.open(options.work / "run")
            receipt = run.require("solve")
            ended = datetime.datetime.fromisoformat(receipt["finished"]).timestamp() + 1 - began
            measured = sampler.peak(ended - receipt["seconds"] - 1, ended)
            wanted = planned(run)["solve"]
            ratio, everything = measured / wanted, sampler.peak()
            budget = int(options.memory_gib * 2**30)
            good &= 0.8 <= ratio <= 1.25 and everything <= budget
            print(
                f"{solver:<9} {int(n):<6} {measured / 2**20:9.0f} MiB {wanted / 2**20:6.0f} MiB {ratio:6.2f} "
                f"{everything / 2**20:10.0f} MiB {budget / 2**20:6.0f} MiB",
                flush=True,
            )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
