"""Estimated and true errors of predictions with float32 tiles of real images; the reference uses float64 tiles.

    python benchmarks/error_estimates.py --data cifar10_subset.npz --n 1200 --p 300 --work DIR [--figure PATH.png]

Each solver predicts with float32 tiles; the reference is `solver=eigh` with float64 tiles. The table has a row per
solver and kernel at t = inf without a ridge. It shows quantiles of estimate / error, the share of errors above their
estimates (1 in 1,000 is allowed), the ratio of bounds to estimates, and the share of the solve's seconds that estimates
take. The figure shows every prediction. The exit code is 1 if more than 2 in 1,000 errors of a row exceed their
estimates, or if a median estimate is more than 20 times the error.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ntkpipe.config import (
    ClusterConfig,
    DataConfig,
    GridConfig,
    KernelConfig,
    PredictConfig,
    RunConfig,
    SolverConfig,
    StoreConfig,
)
from ntkpipe.events.event import silent
from ntkpipe.predictions.read import read_predictions
from ntkpipe.predictions.schema import Predictions
from ntkpipe.report.style import BLUE, GREY, STYLE, VERMILLION
from ntkpipe.run.run_dir import RunDir
from ntkpipe.run.stages import RunAtWork
from ntkpipe.tasks.serial import SerialExecutor

SOLVERS: dict[str, dict[str, Any]] = {
    "eigh": {"kind": "eigh"},
    "krylov": {"kind": "krylov"},
    "krylov, float32 products": {"kind": "krylov", "products": "float32"},
    "cg": {"kind": "cg"},
    "cholesky": {"kind": "cholesky", "leave_one_out": False},
}
SHOWN = ("krylov", "krylov, float32 products")
TIMES = (1e2, 1e4, math.inf)


def run(options: argparse.Namespace, name: str, dtype: str, solver: dict[str, Any]) -> tuple[Predictions, dict]:
    """Run the pipeline in this process, and return the predictions and the facts of the solves."""
    whole = solver["kind"] in ("eigh", "krylov")
    config = RunConfig(
        data=DataConfig(kind="npz", path=str(options.data.resolve()), train_size=options.n, test_size=options.p),
        kernel=KernelConfig(kind="fcn", depth=options.depth, dtype=dtype),
        grid=GridConfig(edge=512),
        store=StoreConfig(url=str(options.work.resolve() / "store")),
        solver=SolverConfig(**solver),
        predict=PredictConfig(times=TIMES if whole else (math.inf,), ridges=(0.0,)),
        cluster=ClusterConfig(kind="serial"),
        report=False,
        run_dir=str(options.work.resolve() / f"{name.replace(', ', '-').replace(' ', '-')}-{dtype}"),
    )
    job = RunAtWork(RunDir.create(config), lambda: SerialExecutor(1), silent)
    with job.at_work():
        job.all()
    return read_predictions(job.run.path / "predictions.zarr"), (job.run.receipt("solve") or {})["kernels"]


def row(name: str, kernel: str, error: np.ndarray, found: Predictions, k: int, facts: dict) -> tuple[list[str], bool]:
    """Return a row of the table, and whether it meets the promise."""
    assert found.error_estimate is not None
    estimate, bound = found.error_estimate[k, -1, 0], found.error_bound[k, -1, 0]
    ratio = estimate / np.maximum(error, np.finfo(float).tiny)
    beyond, median = float(np.mean(error > estimate)), float(np.median(ratio))
    share = facts.get("seconds_estimate", 0.0) / facts["seconds"]
    cells = [name, kernel, f"{np.median(error):.1e}", f"{error.max():.1e}", f"{np.median(estimate):.1e}"]
    cells += [f"{np.quantile(ratio, q):.2f}" for q in (0.001, 0.01)] + [f"{median:.1f}", f"{beyond:.2%}"]
    cells += [
        f"{np.median(bound / estimate):.0f}",
        f"{facts.get('estimate_passes', '-')} of {facts['steps']}",
        f"{share:.0%}",
    ]
    return cells, beyond <= 2e-3 and np.median(estimate) <= 20 * np.median(error)


def draw(points: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    """Draw true errors against estimated ones, with one panel per solver."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.0, 3.5), layout="constrained")
        panels = figure.subplots(1, len(SHOWN), sharex=True, sharey=True)
        for axes, solver in zip(np.atleast_1d(panels), SHOWN, strict=True):
            for kernel, colour in (("ntk", BLUE), ("nngp", VERMILLION)):
                estimate, error = points[solver, kernel]
                axes.scatter(
                    estimate, error, s=2, alpha=0.35, color=colour, linewidths=0, label=kernel.upper(), rasterized=True
                )
            ends = np.array(
                [min(e.min() for e, _ in points.values()) / 2, max(e.max() for e, _ in points.values()) * 2]
            )
            axes.plot(ends, ends, color="black", linewidth=0.9)
            axes.plot(ends, ends / 5, color=GREY, linewidth=0.9, linestyle=(0, (4, 2)))
            axes.plot(ends, ends / 20, color=GREY, linewidth=0.9, linestyle=(0, (1, 2)))
            axes.set(
                xscale="log", yscale="log", xlim=ends, ylim=(ends[0] / 1e3, ends[1]), title=f"{solver}, t = ∞, no ridge"
            )
            axes.set_xlabel("estimate of a prediction's error")
        np.atleast_1d(panels)[0].set_ylabel("its error")
        np.atleast_1d(panels)[0].legend(loc="lower right", markerscale=4)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="an .npz with x_train, y_train, x_test and y_test")
    parser.add_argument("--work", required=True, type=Path, help="a folder for stores and runs")
    parser.add_argument("--n", type=int, default=1200)
    parser.add_argument("--p", type=int, default=300)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    exact, _ = run(options, "exact", "float64", SOLVERS["eigh"])
    heads = [
        "solver",
        "kernel",
        "error, median",
        "largest",
        "estimate, median",
        "estimate / error: 0.1%",
        "1%",
        "median",
    ]
    heads += ["beyond", "bound / estimate", "passes", "of the solve"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    points, held = {}, True
    for name, solver in SOLVERS.items():
        found, facts = run(options, name, "float32", solver)
        for k, kernel in enumerate(found.kernels):
            error = np.abs(found.mean[k, -1, 0] - exact.mean[k, -1, 0])
            assert found.error_estimate is not None
            points[name, kernel] = found.error_estimate[k, -1, 0].ravel(), error.ravel()
            cells, right = row(name, kernel, error, found, k, facts[kernel])
            held &= bool(right)
            print("| " + " | ".join(cells) + " |", flush=True)
    if options.figure is not None:
        draw(points, options.figure)
    return int(not held)


if __name__ == "__main__":
    sys.exit(main())
