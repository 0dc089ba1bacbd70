"""Tests of error bounds on random small problems, which the pipeline solves and a reference solves in 120 digits.

A problem has points with exact and near copies, targets of some scale, an architecture or given matrices, a solver, times
and ridges (`random_problems.py`). The pipeline runs in this process. The reference uses the same floats as its workers. It
computes kernels (`exact_kernels.py`) and predictions (`exact_predictions.py`) in 400 bits, with separate code. No error
may exceed a bound that is called `rigorous`.

    pip install python-flint
    python benchmarks/random_bounds.py --work DIR --rounds 100 --seed 0 [--seconds 600] [--kinds relu,given]
    python benchmarks/random_bounds.py --work DIR --seed 0 --only 17      one problem again, in detail
    python benchmarks/random_bounds.py --work DIR --table [--by solver]
    python benchmarks/random_bounds.py --work DIR --rounds 100 --refine   of networks in float32, t = inf alone and refined

The first command may be repeated with other seeds: `DIR/bounds.jsonl` receives a line per problem, and `--table`
summarises it. An entry is a kernel, time, ridge, test point and output (variances have no outputs). The table counts:

exceeded   entries with an error above the bound, and above the error of the reference where it integrates in float64
infinite   entries without a known bound
idle       entries with a bound above the largest prediction and more than 1e3 times the error, which says nothing
unknown    entries without an answer of the reference, because the flow has no limit, or grows

`estimated` counts the estimates of the same errors (`error_estimate`), of which one in 1,000 may be exceeded.

A run that ntkpipe refuses with its own error is counted; any other error is a fault. The exit code is 1 if there was a
fault, or if a rigorous bound was exceeded.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import os
import shutil
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from exact_answers import Answer, Kernel, answer, distances, exact_kernels, stored_kernels
from random_problems import KINDS, Drawn, draw

from ntkpipe.errors import NtkpipeError
from ntkpipe.events.event import silent
from ntkpipe.predictions.read import read_predictions
from ntkpipe.predictions.schema import Predictions
from ntkpipe.run.context import RunContext
from ntkpipe.run.run_dir import RunDir
from ntkpipe.run.stages import RunAtWork
from ntkpipe.tasks.serial import SerialExecutor

RECORD = "bounds.jsonl"
_IDLE = 1e3
# Compiled programs of so many problems are kept.
_KEPT = 200
# Rounding of the comparison itself.
_TOUCH = 1e-9
_QUANTILES = (0.5, 0.9, 0.99)


def run(drawn: Drawn) -> tuple[RunContext, Predictions]:
    """Run the pipeline in this process, without figures."""
    job = RunAtWork(RunDir.create(drawn.config), lambda: SerialExecutor(1), silent)
    with job.at_work():
        context = job.context()
        job.gram()
        job.solve()
        job.predict()
    return context, read_predictions(job.run.path / "predictions.zarr")


def compare(context: RunContext, found: Predictions) -> dict[str, Any]:
    """Return the record of one finished run: its errors and bounds, compared with the reference."""
    exact = exact_kernels(context)
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    histogram: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    worst: dict[str, Any] | None = None
    negative, missed = False, []
    for k, name in enumerate(found.kernels):
        wanted = answer(context, name, exact, found.times)
        negative |= wanted.negative
        for i, j in np.ndindex(found.shape[1:3]):
            kind = str(found.bound_kind[k, i, j])
            counts[kind]["entries"] += found.mean[k, i, j].size
            if not wanted.known[i, j]:
                counts[kind]["unknown"] += found.mean[k, i, j].size
                continue
            bound = found.error_bound[k, i, j]
            error = distances(found.mean[k, i, j], wanted.mean[i, j])
            size = max(float(abs(v)) for v in wanted.mean[i, j].ravel())
            over = _count(counts[kind], histogram[kind], error, bound, size, wanted.slack[i, j])
            if found.error_estimate is not None:
                estimate, name = found.error_estimate[k, i, j], "estimated"
                counts[name]["entries"] += estimate.size
                beyond = _count(counts[name], histogram[name], error, estimate, size, wanted.slack[i, j])
                if beyond.any():
                    missed.append(
                        {"kernel": found.kernels[k], "time": float(found.times[i]), "ridge": float(found.ridges[j])}
                        | {"beyond": int(beyond.sum()), "of": beyond.size}
                        | {"times over": float(np.max(error[beyond] / np.maximum(estimate[beyond], 1e-300)))}
                        | {"largest prediction": size, "error": float(error[beyond].max())}
                    )
            if over.any():
                at = np.unravel_index(np.argmax(np.where(over, error / np.maximum(bound, 1e-300), 0)), over.shape)
                place = (k, i, j, *map(int, at))
                one = _violation(found, place, float(error[at]), size)
                one |= {
                    "points": int(over.any(1).sum()),
                    **_origin(context, found, exact, wanted, place),
                }
                if worst is None or one["times over"] > worst["times over"]:
                    worst = one
        if found.variance is not None and found.variance_bound is not None and wanted.variance is not None:
            one = _variances(found, wanted, k, counts["variance"], histogram["variance"])
            if one is not None and (worst is None or one["times over"] > worst["times over"]):
                worst = one
    line: dict[str, Any] = {
        "outcome": "held",
        "counts": {kind: dict(c) for kind, c in counts.items()},
        "histogram": {kind: dict(sorted(h.items(), key=lambda x: float(x[0]))) for kind, h in histogram.items()},
    }
    if negative:
        line["negative"] = True
    if missed:
        line["estimates exceeded"] = missed
    if worst is not None:
        rigorous = counts["rigorous"]["exceeded"] > 0
        line |= {"outcome": "EXCEEDED" if rigorous else "estimate exceeded", "worst": worst}
    return line


def _count(
    counts: collections.Counter,
    histogram: collections.Counter,
    error: np.ndarray,
    bound: np.ndarray,
    size: float,
    slack: np.ndarray | float,
) -> np.ndarray:
    """Count errors and their bounds or estimates, and return the entries where they are exceeded."""
    over = error > bound * (1 + _TOUCH) + slack
    counts["exceeded"] += int(over.sum())
    counts["infinite"] += int(np.isinf(bound).sum())
    counts["idle"] += int(((bound > _IDLE * error) & (bound > size)).sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log10(np.where(np.isinf(bound), 0.0, error / bound))
    levels = np.where(np.isfinite(ratio), np.clip(np.ceil(ratio * 4) / 4, -20, 20), -20)
    histogram.update(str(v) for v in levels[np.isfinite(bound)].tolist())
    return over


def _variances(
    found: Predictions, wanted: Answer, k: int, counts: collections.Counter, histogram: collections.Counter
) -> dict[str, Any] | None:
    """Count the variances of one kernel, and return the worst that exceeds its bound."""
    assert found.variance is not None
    assert found.variance_bound is not None
    assert wanted.variance is not None
    worst = None
    for i, j in np.ndindex(found.shape[1:3]):
        value, bound = found.variance[k, i, j], found.variance_bound[k, i, j]
        counts["entries"] += value.size
        if not wanted.known[i, j]:
            counts["unknown"] += value.size
            continue
        error = distances(value, wanted.variance[i, j])
        size = max(float(abs(v)) for v in wanted.variance[i, j])
        over = _count(counts, histogram, error, bound, size, wanted.variance_slack[i, j])
        if over.any():
            at = int(np.argmax(np.where(over, error / np.maximum(bound, 1e-300), 0)))
            times = float(error[at] / bound[at]) if bound[at] > 0 else math.inf
            if worst is None or times > worst["times over"]:
                worst = {
                    "kernel": found.kernels[k],
                    "time": float(found.times[i]),
                    "ridge": float(found.ridges[j]),
                    "test": at,
                    "bound kind": "variance",
                    "error": float(error[at]),
                    "bound": float(bound[at]),
                    "times over": times,
                    "largest variance": size,
                    "points": int(over.sum()),
                }
    return worst


def _violation(found: Predictions, at: tuple[int, ...], error: float, size: float) -> dict[str, Any]:
    k, i, j, test, output = at
    bound = float(found.error_bound[at])
    return {
        "kernel": found.kernels[k],
        "time": float(found.times[i]),
        "ridge": float(found.ridges[j]),
        "test": test,
        "output": output,
        "bound kind": str(found.bound_kind[k, i, j]),
        "error": error,
        "bound": bound,
        "times over": error / bound if bound > 0 else math.inf,
        "largest prediction": size,
        "terms": {name: float(term[k, i, j, output]) for name, term in found.bound_terms.items()},
    }


def _origin(
    context: RunContext, found: Predictions, kernels: dict[str, Kernel], wanted: Answer, at: tuple[int, ...]
) -> dict[str, Any]:
    """Split an error into the error of the tiles and that of the solver, by the exact answer for the stored tiles."""
    k, i, j, test, output = at
    name = found.kernels[k]
    source = "ntk" if name == "ntkgp" else name
    exact, stored = kernels[source], stored_kernels(context)[source]
    parts = {}
    for what, kernel in (
        ("train tiles", Kernel(stored.train, exact.test, stored.diagonal, exact.own)),
        ("test tiles", Kernel(exact.train, stored.test, exact.diagonal, exact.own)),
        ("all tiles", stored),
    ):
        other = answer(context, name, {**kernels, source: kernel}, found.times)
        parts[what] = float(abs(other.mean[i, j, test, output] - wanted.mean[i, j, test, output]))
        if what == "all tiles":
            parts["solver"] = float(distances(found.mean[at], other.mean[i, j, test, output]))
    return {"error of": parts}


def tried(drawn: Drawn) -> dict[str, Any]:
    """Run the problem, compare it with the reference, and return the outcome."""
    began = time.monotonic()
    try:
        with np.errstate(all="ignore"):
            context, found = run(drawn)
            seconds = round(time.monotonic() - began, 2)
            return {**compare(context, found), "seconds": seconds}
    except NtkpipeError as error:
        return {"outcome": "refused", "class": type(error).__name__, "why": str(error)[:300]}
    except Exception:
        return {"outcome": "FAULT", "why": traceback.format_exc()}


def refined(drawn: Drawn) -> Drawn:
    """Return the problem at the end of training, in float32 and with refinement."""
    config = drawn.config
    return replace(
        drawn,
        config=replace(
            config,
            kernel=replace(config.kernel, dtype="float32"),
            solver=replace(config.solver, refine=1),
            predict=replace(config.predict, times=(math.inf,), dynamics="gradient_flow", learning_rate=1.0),
        ),
    )


def round_of(options: argparse.Namespace, k: int) -> dict[str, Any]:
    """Draw and run a problem, and return its line of the record."""
    folder = options.work.resolve() / f"round-{os.getpid()}-{k}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    drawn = draw(np.random.default_rng([options.seed, k]), folder, options.kinds)
    line: dict[str, Any] = {"seed": options.seed, "round": k, "what": drawn.kind, **drawn.facts}
    if options.kinds != tuple(KINDS):
        line["kinds"] = ",".join(options.kinds)
    if options.refine:
        drawn = refined(drawn)
    began = time.monotonic()
    line |= tried(drawn)
    line["seconds in all"] = round(time.monotonic() - began, 2)
    if options.only is None:
        shutil.rmtree(folder)
    return line


def table(lines: list[dict], by: str) -> str:
    """Return a table in Markdown by kind of problem or solver, and by kind of bound."""
    for line in lines:
        line["by"] = line["what"] if by == "kind" else line["solver"]["kind"]
    names = ("entries", "exceeded", "infinite", "idle", "unknown")
    made = [
        f"| problems | run | refused | faults | bound | {' | '.join(names)} | "
        f"{' | '.join(f'error / bound at {q:.0%}' for q in _QUANTILES)} | largest |",
        "|---" * (9 + len(_QUANTILES) + 1) + "|",
    ]
    for what in (*(sorted({line["by"] for line in lines})), "in all"):
        mine = [line for line in lines if what in ("in all", line["by"])]
        if not mine:
            continue
        outcomes = collections.Counter(line["outcome"] for line in mine)
        head = f"| {what} | {len(mine)} | {outcomes['refused']} | {outcomes['FAULT']} "
        for kind in sorted({kind for line in mine for kind in line.get("counts", ())}, reverse=True):
            total, histogram = collections.Counter(), collections.Counter()
            for line in mine:
                total.update(line.get("counts", {}).get(kind, {}))
                histogram.update({float(x): m for x, m in line.get("histogram", {}).get(kind, {}).items()})
            cells = [f"{total[name]:,}" for name in names]
            cells += [_at(histogram, q) for q in (*_QUANTILES, 1.0)]
            made.append(f"{head}| {kind} | {' | '.join(cells)} |")
            head = "| | | | "
    return "\n".join(made)


def _at(histogram: collections.Counter, share: float) -> str:
    """Return a quantile of error over bound, rounded up to a quarter of a decade."""
    total, seen = sum(histogram.values()), 0
    for level in sorted(histogram):
        seen += histogram[level]
        if seen >= share * total:
            return f"{10**level:.1g}"
    return "-"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", required=True, type=Path, help=f"a folder for everything; {RECORD} in it is kept")
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no round begins after this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this round of the seed alone, in detail; its folder is kept")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of problems; other choices draw other problems")
    parser.add_argument("--table", action="store_true", help="show what was gathered, and do nothing")
    parser.add_argument("--by", choices=("kind", "solver"), default="kind", help="rows of the table")
    parser.add_argument(
        "--refine", action="store_true", help="networks in float32 at the end of training, with solver.refine=1"
    )
    options = parser.parse_args()
    if options.refine:
        options.kinds = ",".join(kind for kind in options.kinds.split(",") if kind != "given")
    options.kinds = tuple(options.kinds.split(","))
    record = options.work / RECORD
    if options.table:
        lines = [json.loads(line) for line in record.read_text().splitlines()]
        print(table(lines, options.by))
        return int(any(line["outcome"] in ("FAULT", "EXCEEDED") for line in lines))
    options.work.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(options.work.resolve() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    end = time.monotonic() + options.seconds
    lines = []
    for k in range(options.rounds) if options.only is None else [options.only]:
        if time.monotonic() > end:
            break
        line = round_of(options, k)
        lines.append(line)
        if line["outcome"] not in ("held", "refused") or options.only is not None:
            print(json.dumps(line, indent=1).replace("\\n", "\n"), flush=True)
        if options.only is None:
            with record.open("a") as file:
                file.write(json.dumps(line) + "\n")
        if k % _KEPT == _KEPT - 1:
            jax.clear_caches()
    print(table(lines, options.by))
    return int(any(line["outcome"] in ("FAULT", "EXCEEDED") for line in lines))


if __name__ == "__main__":
    sys.exit(main())
