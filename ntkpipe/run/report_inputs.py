"""Collects the inputs of a finished run's report."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import numpy as np

import ntkpipe
from ntkpipe import limits
from ntkpipe.config import to_dict
from ntkpipe.predictions.metrics import compute_metrics
from ntkpipe.predictions.read import read_predictions
from ntkpipe.propagation.summary import summary
from ntkpipe.report.drawing import drawing
from ntkpipe.report.inputs import ReportInputs
from ntkpipe.run.context import RunContext
from ntkpipe.run.run_dir import STAGES, RunDir
from ntkpipe.run.solving import load_saved
from ntkpipe.solvers.from_config import from_config


def write_report(run: RunDir, context: RunContext, folder: Path | None = None) -> Path:
    """Write the figures (PNG and SVG) and one self-contained page.

    Args:
        run: folder of the run.
        context: context of the run.
        folder: target folder; None is `report/` in the run's folder.

    Returns:
        The page's path.

    Raises:
        ReportError: if the figures could not be drawn.
    """
    predictions = read_predictions(run.path / "predictions.zarr", covariance=False)
    facts = run.require("solve")["kernels"]
    spectra, convergence = {}, {}
    for name in predictions.kernels:
        saved = load_saved(name, run)
        if len(saved["spectrum"]):
            spectra[name] = saved["spectrum"]
        if len(saved["history"]):
            steps, _, bounds = saved["history"].T
            convergence[name] = {"steps": [int(step) for step in steps], "bound": [float(bound) for bound in bounds]}
            if estimates := facts.get(name, {}).get("estimates"):
                convergence[name]["estimates"] = estimates
    solver = from_config(run.config)
    made = ReportInputs(
        predictions=predictions,
        metrics=compute_metrics(predictions),
        spectra=spectra,
        spectrum_kind=solver.spectrum_kind,
        convergence=convergence,
        tolerance=solver.stops_at if convergence else None,
        images=_pictures(context),
        summary=_summary(run, context, facts, predictions.attributes.get("warnings", [])),
    )
    with drawing(f"ntkpipe report run_dir={run.path}"):
        from ntkpipe.report import page

        return page.write_report(made, folder or run.path / "report")


def _pictures(context: RunContext) -> np.ndarray | None:
    """Return the test images scaled to 0..1, in the order of their source; None if the points are not images."""
    p, (*spatial, channels) = context.kernels.test_points, context.data.shape("test")[1:]
    if len(spatial) != 2 or min(spatial) < 2 or channels not in (1, 3):
        return None
    x = np.asarray(context.data.read("test", 0, p), dtype=np.float32)
    steps = context.data.preprocessing
    if steps.get("zca") is None and not steps.get("unit_norm") and steps.get("mean") is not None:
        x = x * np.array(steps["std"], np.float32) + np.array(steps["mean"], np.float32)
        low, high = float(x.min()), float(x.max())
        # Float images may have any range. Images from uint8 are already in 0..1.
        x = x if low >= -1e-3 and high <= 1 + 1e-3 else (x - low) / max(high - low, 1e-12)
    else:
        flat = x.reshape(p, -1)
        low, high = flat.min(1)[:, None, None, None], flat.max(1)[:, None, None, None]
        x = (x - low) / np.maximum(high - low, 1e-12)
    order = np.argsort(context.data.labels().test_index[:p], kind="stable")
    return np.clip(x[order], 0.0, 1.0)


def _summary(run: RunDir, context: RunContext, facts: dict[str, Any], warnings: list[str]) -> dict[str, Any]:
    d, shape = run.config.data, context.data.shape("train")[1:]
    source = d.kind if d.path is None else f"{d.kind} ({Path(d.path).name})"
    flips = "" if run.config.augment == "none" else " and their flips"
    receipts = {stage: run.receipt(stage) for stage in STAGES}
    kernel = context.opened.source.describe()
    return {
        "title": f"{source}{flips}: {run.config.kernel.title}",
        "warnings": warnings,
        "signals": summary(kernel["layers"], run.config.kernel.dtype) if "layers" in kernel else [],
        "max_learning_rate": {name: f["max_learning_rate"] for name, f in facts.items()},
        "timings": {stage: r["seconds"] for stage, r in receipts.items() if r is not None},
        "data": {
            "source": source,
            "training points": f"{context.kernels.n:,}{flips}" if flips else context.kernels.training_points,
            "test points": context.kernels.test_points,
            **({"image shape": list(shape)} if all(shape) else {}),
            "fingerprint": context.data.fingerprint,
            "preprocessing": {k: v for k, v in context.data.preprocessing.items() if v not in (None, False)},
        },
        "kernel": kernel,
        "solver": {
            name: {
                x: f[x]
                for x in ("solver", "steps", "vectors", "reason", "true_residual", "largest", "smallest", "seconds")
            }
            | ({"factors": f["factors"]} if "factors" in f else {})
            for name, f in facts.items()
        },
        "hardware": {
            "processor": platform.processor() or platform.machine(),
            "cores": limits.processors(),
            "memory": f"{limits.memory() / 2**30:.1f} GiB",
            "workers": context.kernels.workers,
        },
        "versions": {
            "ntkpipe": ntkpipe.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("jax", "numpy", "scipy", "zarr", "ray")},
        },
        "config": to_dict(run.config),
    }
