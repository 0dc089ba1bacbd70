"""Random kills in complete runs on real images: every run is continued, and its predictions must not change.

The script starts a Ray cluster of several nodes on loopback. For each solver, one run is undisturbed, and others are
disturbed in every stage and at random moments. A disturbance kills the driver (SIGKILL) or tells it to end (SIGTERM, as
on pre-emption), kills one of its workers, removes a whole node and adds a new one, or removes the head with the cluster
and starts a new one. A driver that has ended is started again with the same command. If a run finishes before all kills
are used, another one begins in a fresh store. Finished runs are compared with the undisturbed run. Every process records
when it begins and ends each tile.

    python benchmarks/random_kills.py --data cifar10_subset.npz --work DIR --solvers krylov,cg --kills 10 --seed 0 [setting=value ...]
    python benchmarks/random_kills.py --work DIR --table

The first command may be repeated with other seeds: `DIR/kills.jsonl` receives a line per disturbed run, and the second
command summarises it as a table. The exit code is 1 if a prediction or variance differs by more than 1e-12. If nodes were
lost, the limit is the error bounds, because a pool with fewer workers sums in another order. The exit code is also 1 if
a tile was evaluated again without a reason: a kill during its evaluation, a second copy, or a worker without its driver.
Linux only.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
from kills_journal import HOOK, Evaluation, Kill, Lifetime, count_repeats, read_journal
from ray_nodes import RayNodes, tree

from ntkpipe.predictions.read import read_predictions
from ntkpipe.predictions.schema import Predictions

TOLERANCE = 1e-12
STAGES = ("gram", "solve", "predict")
HOWS = ("driver killed", "driver told to end", "worker killed", "node lost", "head lost")
NODES = 2
# How often the next kill is meant for the stage that runs.
_SAME = 0.7
# Seconds in which a run that has lost its head, or was told to end, must be gone.
PATIENCE = 90.0


class Pipeline:
    """One complete run in a separate folder."""

    def __init__(self, work: Path, options: argparse.Namespace, solver: str, environment: dict[str, str]) -> None:
        self.work, self.note = work, work / "peace.json"
        self.environment = environment
        times = "[inf]" if solver in ("cholesky", "cg") else "[10,1e4,inf]"
        covariance = "none" if solver == "cg" else "diagonal"
        self.command = [
            *(sys.executable, "-m", "ntkpipe", "run", "data=npz", f"data.path={options.data.resolve()}"),
            *(f"data.train_size={options.n}", f"data.test_size={options.p}", "kernel.dtype=float64", "grid.edge=64"),
            *(f"solver={solver}", f"predict.times={times}", "predict.ridges=[1e-6,1e-3]"),
            *(("solver.checkpoint_every=3",) if solver in ("krylov", "cg") else ()),
            *(f"predict.covariance={covariance}", f"store.url={work / 'store'}", f"run_dir={work / 'run'}"),
            *(f"cluster={options.cluster}", *options.overrides),
        ]
        self.lives: list[Lifetime] = []

    def known(self) -> bool:
        """Return whether an earlier call has already finished this run, undisturbed and with the same command."""
        return self.note.exists() and json.loads(self.note.read_text())["command"] == self.command

    def clear(self) -> None:
        """Remove all files of the run."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)

    def start(self, nodes: RayNodes) -> subprocess.Popen[bytes]:
        """Start the driver on the current cluster."""
        with (self.work / "log").open("ab") as log:
            driver = subprocess.Popen(
                [*self.command, f"cluster.address={nodes.address}"],
                env=self.environment,
                stdout=log,
                stderr=log,
                cwd=self.work,
                start_new_session=True,
            )
        self.lives.append(Lifetime(time.time(), nodes.generation))
        return driver

    def ended(self) -> None:
        self.lives[-1].end = time.time()

    def stage(self) -> str:
        """Return the current stage."""
        for stage in ("data", *STAGES, "report"):
            if not (self.work / "run" / "stages" / f"{stage}.json").exists():
                return stage
        return "finished"

    def receipt(self, stage: str) -> dict:
        return json.loads((self.work / "run" / "stages" / f"{stage}.json").read_text())

    def fail(self, why: str) -> NoReturn:
        """Stop everything, because the run ended in a wrong way."""
        raise RuntimeError(f"{why}; the end of {self.work / 'log'}:\n{self.last_words(3000)}")

    def last_words(self, count: int = 1000) -> str:
        """Return the last lines of the output of the run's drivers."""
        return (self.work / "log").read_text()[-count:]


@dataclasses.dataclass
class Disturbance:
    """Kills runs at random moments of random stages.

    Args:
        nodes: nodes of the cluster.
        rng: random generator of the kills.
        spans: seconds of each stage in the undisturbed run.
        kills: kills so far.
    """

    nodes: RayNodes
    rng: random.Random
    spans: dict[str, float]
    kills: list[Kill] = dataclasses.field(default_factory=list)

    def run(self, pipeline: Pipeline, left: int, deadline: float) -> None:
        """Run to the end with at most `left` kills, and none after `deadline` (monotonic)."""
        driver, most = pipeline.start(self.nodes), len(self.kills) + left
        self._planned = self._plan(pipeline)
        while True:
            time.sleep(0.02)
            if (code := driver.poll()) is not None:
                pipeline.ended()
                if code == 0:
                    return
                pipeline.fail(f"the driver ended by itself, with exit code {code}")
            if len(self.kills) >= most or time.monotonic() > deadline or not self._due(pipeline):
                continue
            how = self.rng.choice(HOWS)
            if self._make(how, pipeline, driver):
                driver = pipeline.start(self.nodes)
            self._planned = self._plan(pipeline)

    def _plan(self, pipeline: Pipeline) -> tuple[str, float, float | None]:
        """Choose a stage and the share of its time after which to kill; the moment is known once the stage begins."""
        now = pipeline.stage()
        ahead = STAGES[STAGES.index(now) :] if now in STAGES else STAGES if now == "data" else ()
        # Mostly in the stage that runs: else the first ones would see few.
        stage = "predict" if not ahead else ahead[0] if self.rng.random() < _SAME else self.rng.choice(ahead)
        return stage, self.rng.uniform(0.0, self.spans[stage]), None

    def _due(self, pipeline: Pipeline) -> bool:
        stage, after, when = self._planned
        now = pipeline.stage()
        if when is None and (now == stage or now in ("report", "finished")):
            when = time.monotonic() + after
            self._planned = stage, after, when
        return when is not None and time.monotonic() >= when

    def _make(self, how: str, pipeline: Pipeline, driver: subprocess.Popen[bytes]) -> bool:
        """Make one kill, and return whether the driver must be started again."""
        stage, began = pipeline.stage(), time.time()
        if driver.poll() is not None:
            return False  # it has just finished
        gone: list[int] | None = None  # of every process
        if how == "worker killed":
            if not (workers := self.nodes.workers()):
                return False
            worker = self.rng.choice(workers)
            worker.kill()
            gone = [worker.pid]
        elif how == "node lost":
            gone = self.nodes.kill_node(self.rng.choice(self.nodes.names))
            self.nodes.add()
        elif how == "head lost":
            self.nodes.kill_head()
        else:
            driver.send_signal(signal.SIGKILL if how == "driver killed" else signal.SIGTERM)
        kill = Kill(how, stage, began, time.time(), gone)
        self.kills.append(kill)
        print(f"{began - pipeline.lives[0].begin:6.1f} s  {how} in {stage}", file=sys.stderr, flush=True)
        if how in ("worker killed", "node lost"):
            return False
        try:
            code = driver.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            pipeline.fail(f"the driver lives {PATIENCE:g} s after this: {how}")
        # What a driver that was told to end, or that has lost its cluster, still does is its own.
        kill.end = time.time()
        pipeline.ended()
        # One that had not joined yet finds no cluster to join.
        late = how == "head lost" and code == 8 and "there is no Ray cluster at" in pipeline.last_words()
        if code not in (0, -signal.SIGKILL if how == "driver killed" else 75) and not late:
            pipeline.fail(f"exit code {code} after this: {how}")
        if how == "head lost":
            self.nodes.start()
        else:
            # A pool is divided among the places that there are at its start: the same number gives the same sums.
            self.nodes.settle()
        return code != 0  # else it was through


def compared(mine: Predictions, theirs: Predictions) -> dict:
    """Return the largest difference of a mean or variance, its share of the error bounds, and if all bits are equal."""
    pairs = [(mine.mean, theirs.mean, mine.error_bound + theirs.error_bound)]
    if mine.variance is not None and theirs.variance is not None:
        assert mine.variance_bound is not None
        assert theirs.variance_bound is not None
        pairs.append((mine.variance, theirs.variance, mine.variance_bound + theirs.variance_bound))
    off = [np.abs(a - b) for a, b, _ in pairs]
    shares = [(d / np.maximum(bound, 1e-300)).max() for d, (_, _, bound) in zip(off, pairs, strict=True)]
    return {
        "difference": max(float(d.max()) for d in off),
        "share": float(max(shares)),
        "bits": all(np.array_equal(a, b) for a, b, _ in pairs),
    }


def campaign(options: argparse.Namespace, solver: str, nodes: RayNodes, environment: dict[str, str]) -> Iterator[dict]:
    """Make all kills of one solver in this call, and yield the result of every finished run."""
    journal = Path(environment["NTKPIPE_KILLS_JOURNAL"])
    quiet = Pipeline(options.work / f"{solver}-peace", options, solver, environment)
    if not quiet.known():
        quiet.clear()
        if quiet.start(nodes).wait() != 0:
            quiet.fail("the run in peace failed")
        tiles = sorted({e.tile for e in read_journal(journal, quiet.work / "store")})
        quiet.note.write_text(json.dumps({"command": quiet.command, "tiles": tiles}))
    expected = read_predictions(quiet.work / "run" / "predictions.zarr")
    tiles = {tuple(tile) for tile in json.loads(quiet.note.read_text())["tiles"]}
    spans = {stage: quiet.receipt(stage)["seconds"] for stage in STAGES}
    rng, began, left = random.Random(f"{options.seed} {solver}"), time.monotonic(), options.kills  # noqa: S311
    while left > 0 and (now := time.monotonic()) < began + options.seconds:
        journal.write_text("")
        pipeline, disturbance = (
            Pipeline(options.work / f"{solver}-run", options, solver, environment),
            Disturbance(nodes, rng, spans),
        )
        pipeline.clear()
        disturbance.run(pipeline, left, began + options.seconds)
        made = disturbance.kills
        left -= len(made)
        evaluations: list[Evaluation] = read_journal(journal, pipeline.work / "store")
        assert {e.tile for e in evaluations} == tiles, "another set of tiles"
        repeats = count_repeats(evaluations, made, pipeline.lives)
        repeats["tasks retried"] += pipeline.receipt("gram").get("retries", 0)
        yield {
            "solver": solver,
            "seed": options.seed,
            "tiles": len(tiles),
            **compared(read_predictions(pipeline.work / "run" / "predictions.zarr"), expected),
            "kills": collections.Counter(f"{kill.how}, {kill.stage}" for kill in made),
            "in_flight": {how: sum(k.in_flight for k in made if k.how == how) for how in HOWS},
            "repeats": repeats,
            "seconds": round(time.monotonic() - now, 1),
        }


def failed(one: dict) -> bool:
    """Return whether a line of the record shows a fault of ntkpipe.

    A pool that begins while a node is missing has fewer workers, and sums the same numbers in another order.
    """
    lost = any(name.startswith(("node lost", "head lost")) for name in one["kills"])
    differs = one["difference"] > TOLERANCE and not (lost and one["share"] <= 1.0)
    return differs or one["repeats"].get("unexplained", 0) > 0


def table(lines: list[dict]) -> str:
    """Return a table of all calls, in Markdown."""
    kills: collections.Counter[tuple[str, str]] = collections.Counter()
    in_flight: collections.Counter[str] = collections.Counter()
    for line in lines:
        for name, count in line["kills"].items():
            how, _, stage = name.partition(", ")
            kills[how, stage if stage in STAGES else "before or after"] += count
        in_flight.update(line["in_flight"])
    columns = (*STAGES, "before or after")
    rows = [f"| kill | {' | '.join(columns)} | in all | tiles in the making |", "|---" * (len(columns) + 3) + "|"]
    for how in HOWS:
        counts = [kills[how, stage] for stage in columns]
        rows.append(f"| {how} | {' | '.join(map(str, counts))} | {sum(counts)} | {in_flight[how]} |")
    sums = [sum(kills[how, stage] for how in HOWS) for stage in columns]
    rows.append(f"| all | {' | '.join(map(str, sums))} | {sum(sums)} | {sum(in_flight.values())} |")
    rows += [
        "",
        "| solver | kills | runs | tiles | evaluated again | in the making at a kill | workers without a driver | second copies "
        "| unexplained | tasks retried | equal in every bit | largest difference | of the error bounds |",
        "|---" * 13 + "|",
    ]
    for solver in dict.fromkeys(line["solver"] for line in lines):
        mine = [line for line in lines if line["solver"] == solver]
        repeats: collections.Counter[str] = collections.Counter()
        for line in mine:
            repeats.update(line["repeats"])
        difference = max(line["difference"] for line in mine)
        cells = [
            sum(sum(line["kills"].values()) for line in mine),
            len(mine),
            sum(line["tiles"] for line in mine),
        ]
        cells += [repeats[k] for k in ("again", "in flight", "orphans", "copies", "unexplained", "tasks retried")]
        cells += [sum(line["bits"] for line in mine), f"{difference:.1e}", f"{max(line['share'] for line in mine):.1e}"]
        rows.append(f"| {solver} | {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--work", required=True, type=Path, help="a folder for everything; kills.jsonl in it is kept")
    parser.add_argument("--solvers", default="krylov,cg,cholesky,eigh")
    parser.add_argument("--kills", type=int, default=25, help="per solver")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="per solver: no kills after this, whatever is left"
    )
    parser.add_argument("--n", type=int, default=1500)
    parser.add_argument("--p", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="show what was gathered, and do nothing")
    options, options.overrides = parser.parse_known_args()
    record = options.work / "kills.jsonl"
    if options.table:
        lines = [json.loads(line) for line in record.read_text().splitlines()]
        print(table(lines))
        return int(any(map(failed, lines)))
    if options.data is None:
        parser.error("--data is needed")
    options.cluster = "ray"
    options.work = options.work.resolve()
    (options.work / "hook").mkdir(parents=True, exist_ok=True)
    (options.work / "hook" / "sitecustomize.py").write_text(HOOK)
    journal = options.work / "journal"
    journal.write_text("")
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        "PYTHONPATH": os.pathsep.join([str(options.work / "hook"), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "NTKPIPE_KILLS_JOURNAL": str(journal),
        "RAY_AUTH_MODE": "disabled",
        # A lost head is given up after five seconds.
        "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    }
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cluster ends with this process
    bad = False
    nodes = RayNodes(Path(tempfile.mkdtemp(prefix="ntkr")), environment, NODES)
    try:
        nodes.start()
        for solver in options.solvers.split(","):
            for one in campaign(options, solver, nodes, environment):
                bad |= failed(one)
                with record.open("a") as file:
                    file.write(json.dumps(one) + "\n")
                print(f"{table([one])}\n{one['seconds']:.0f} s{'   FAILED' if failed(one) else ''}\n", flush=True)
    finally:
        nodes.close()
        for child in tree(os.getpid())[1:]:
            child.kill()  # a driver, where this was interrupted
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
