"""Kills at random over complete runs on real images: each is taken up again, and the predictions must not change.

For every solver one run is left in peace and others are disturbed: at random times the driver is killed (SIGKILL), told to
end (SIGTERM, as on pre-emption), or one of its workers is killed. A driver that is gone is started again with the same command;
a run that finishes before all kills are spent is followed by another in a fresh store. Finished runs are compared with the one
left in peace, and evaluations of tiles are counted by a journal that every process writes.

    python benchmarks/random_kills.py --data cifar10_subset.npz --work /scratch/kills --kills 20 [--solvers krylov,cg] [setting=value ...]

Prints one line per solver: kills of each kind, finished runs, largest difference of a prediction, tiles evaluated more than
once against what was in flight when something was killed. The exit code is 1 if a difference exceeds 1e-12 or a count is too large.
Linux only.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil

from ntkpipe.predictions.read import read_predictions

TOLERANCE = 1e-12
# Read by every Python process that finds this folder on its path, the workers of Ray included.
JOURNAL = """
import os, sys
path = os.environ.get("NTKPIPE_KILLS_JOURNAL")
if path:
    import importlib.abc, importlib.machinery
    class Hook(importlib.abc.MetaPathFinder):
        def find_spec(self, name, where, target=None):
            if name != "ntkpipe.gram.task":
                return None
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(name)
            load = spec.loader.exec_module
            def exec_module(module):
                load(module)
                lacking = module.GramJob.lacking
                def noted(job, label, i, j):
                    found = lacking(job, label, i, j)
                    if found:
                        with open(path, "a") as file:
                            file.write(f"{label} {i} {j}\\n")
                    return found
                module.GramJob.lacking = noted
            spec.loader.exec_module = exec_module
            return spec
    import importlib.util
    sys.meta_path.insert(0, Hook())
"""


@dataclasses.dataclass
class Outcome:
    kills: collections.Counter
    runs: int = 0
    difference: float = 0.0
    repeated: int = 0
    seconds: float = 0.0


class Pipeline:
    """One complete run in a folder of its own."""

    def __init__(self, work: Path, name: str, options: argparse.Namespace, solver: str) -> None:
        self.work = work / name
        self.work.mkdir(parents=True)
        hook = work / "hook"
        hook.mkdir(exist_ok=True)
        (hook / "sitecustomize.py").write_text(JOURNAL)
        self.journal = self.work / "journal"
        self.journal.touch()
        path = os.pathsep.join([str(hook), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.environment = {**os.environ, "PYTHONPATH": path, "NTKPIPE_KILLS_JOURNAL": str(self.journal)}
        covariance = "diagonal" if solver in ("eigh", "cholesky") else "none"
        times = "[inf]" if solver in ("cholesky", "cg") else "[10,1e4,inf]"
        self.command = [
            *(sys.executable, "-m", "ntkpipe", "run", "data=npz", f"data.path={options.data.resolve()}"),
            *(f"data.train_size={options.n}", f"data.test_size={options.p}", "kernel.dtype=float64", "grid.edge=128"),
            *(f"solver={solver}", f"predict.times={times}", "predict.ridges=[1e-6,1e-3]", "solver.checkpoint_every=3"),
            *(f"predict.covariance={covariance}", f"store.url={self.work / 'store'}", f"run_dir={self.work / 'run'}"),
            *options.overrides,
        ]

    def start(self) -> subprocess.Popen:
        log = (self.work / "log").open("a")
        return subprocess.Popen(
            self.command, env=self.environment, stdout=log, stderr=log, cwd=self.work, start_new_session=True
        )

    def finished(self) -> bool:
        return (self.work / "run" / "stages" / "report.json").exists()

    def evaluated(self) -> collections.Counter:
        return collections.Counter(line for line in self.journal.read_text().splitlines() if "diagonal" not in line)

    def fail(self) -> None:
        sys.exit(f"the run failed; the end of its log:\n{(self.work / 'log').read_text()[-3000:]}")


def workers_of(driver: subprocess.Popen) -> list[psutil.Process]:
    """Processes that run ntkpipe's tasks or hold a pool's state now."""
    found = []
    try:
        for process in psutil.Process(driver.pid).children(recursive=True):
            name = (process.cmdline() or [""])[0]
            if name.startswith("ray::") and "IDLE" not in name:
                found.append(process)
    except psutil.Error:
        pass
    return found


def disturb(pipeline: Pipeline, rng: random.Random, left: int, span: float, outcome: Outcome) -> int:
    """Run to the end under at most `left` kills, the next within `span` seconds; the number of kills made."""
    made = 0
    driver = pipeline.start()
    while True:
        wait = rng.uniform(0.0, span)
        end = time.monotonic() + wait
        while driver.poll() is None and (made == left or time.monotonic() < end):
            time.sleep(0.02)
        code = driver.poll()
        if code is not None:
            if pipeline.finished():
                return made
            # Killed for this test, or told to end: started again; anything else is a failure of the run.
            if code not in (-signal.SIGKILL, -signal.SIGTERM, 75, 143):
                pipeline.fail()
            driver = pipeline.start()
            continue
        how = rng.choice(["driver killed", "driver told to end", "worker killed"])
        if how == "worker killed":
            if not (workers := workers_of(driver)):
                continue
            rng.choice(workers).kill()
        else:
            driver.send_signal(signal.SIGKILL if how == "driver killed" else signal.SIGTERM)
            driver.wait()
        made += 1
        outcome.kills[how] += 1


def values(pipeline: Pipeline) -> list[np.ndarray]:
    found = read_predictions(pipeline.work / "run" / "predictions.zarr")
    return [found.mean, *([] if found.variance is None else [found.variance])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--work", required=True, type=Path, help="a folder for everything; what is in it goes")
    parser.add_argument("--solvers", default="krylov,cg,cholesky,eigh")
    parser.add_argument("--kills", type=int, default=20, help="per solver")
    parser.add_argument("--n", type=int, default=1500)
    parser.add_argument("--p", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options, options.overrides = parser.parse_known_args()
    shutil.rmtree(options.work, ignore_errors=True)
    bad = False
    for solver in options.solvers.split(","):
        rng = random.Random(f"{options.seed} {solver}")  # noqa: S311
        peace = Pipeline(options.work, f"{solver}-peace", options, solver)
        began = time.monotonic()
        if peace.start().wait() != 0:
            peace.fail()
        span = time.monotonic() - began
        expected, tiles = values(peace), peace.evaluated()
        outcome = Outcome(collections.Counter())
        allowed = 0
        began = time.monotonic()
        while sum(outcome.kills.values()) < options.kills:
            outcome.runs += 1
            pipeline = Pipeline(options.work, f"{solver}-{outcome.runs}", options, solver)
            made = disturb(pipeline, rng, options.kills - sum(outcome.kills.values()), span, outcome)
            found = pipeline.evaluated()
            assert set(found) == set(tiles), "another set of tiles"
            outcome.repeated += sum(found.values()) - len(found)
            # Of each worker one tile is being computed and one being written.
            allowed += 2 * made * len(os.sched_getaffinity(0))
            for mine, theirs in zip(values(pipeline), expected, strict=True):
                outcome.difference = max(outcome.difference, float(np.abs(mine - theirs).max()))
        outcome.seconds = time.monotonic() - began
        ok = outcome.difference <= TOLERANCE and outcome.repeated <= allowed
        bad |= not ok
        kills = ", ".join(f"{count} {how}" for how, count in sorted(outcome.kills.items()))
        print(
            f"{solver:<9} {sum(outcome.kills.values())} kills ({kills}) over {outcome.runs} runs of {len(tiles)} tiles, "
            f"{outcome.seconds:.0f} s: largest difference {outcome.difference:.1e}, {outcome.repeated} tiles evaluated again "
            f"(at most {allowed} in flight){'' if ok else '   FAILED'}",
            flush=True,
        )
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
