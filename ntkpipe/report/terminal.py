"""Formats results as lines for a terminal."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ntkpipe.dynamics.estimates import STATED
from ntkpipe.predictions.doubt import MARK, legend
from ntkpipe.predictions.refinement import describe_refinement

TIMES_SHOWN = 8


def summary(metrics: dict[str, Any]) -> list[str]:
    """Return tables for the terminal, with a line per kernel and ridge and a column per time, of at most `TIMES_SHOWN`.

    For classification they show accuracies. For regression they show root mean squared errors, R^2, and the share of
    targets within 90% intervals. Values that may be entirely wrong carry a mark, and a line under the table gives the
    reason.
    """
    rates = [
        f"{name}: learning rate times curvature {one['rate_times_curvature']:.3g} of {one['edge']:g}: {one['text']}"
        for name, one in (metrics.get("rates") or {}).items()
    ]
    last = [*rates, *error_lines(metrics)]
    if not metrics.get("known", True):
        return [f"{metrics['test_points']:,} points predicted; they have no labels or targets", *last]
    if metrics["task"] == "classification":
        return [*_table(metrics, "accuracy", "accuracy"), *last]
    lines = _table(metrics, "rmse", "root mean square")
    if (mean := metrics.get("of_the_mean")) is not None:
        lines.append(f"baseline, the mean of the training targets: {mean['rmse']:.4g}")
    lines += _table(metrics, "r2", "R^2")
    if any(entry.get("coverage_90") is not None for entry in metrics["entries"]):
        lines += _table(metrics, "coverage_90", "in 90% intervals")
        if not metrics.get("noise_included", True):
            lines.append(
                "these intervals leave out the noise of the targets: predict.noise=held_out estimates and adds it"
            )
    return lines + last


def error_lines(metrics: dict[str, Any]) -> list[str]:
    """Return a line per kernel on the numerical error of the predictions at the last time and the first ridge."""
    last = {}
    for entry in metrics["entries"]:
        if (found := last.get(entry["kernel"])) is None or entry["time"] > found["time"]:
            last[entry["kernel"]] = entry
    refined = {name: describe_refinement(one) for name, one in (metrics.get("refinement") or {}).items()}
    lines = []
    for kernel, entry in last.items():
        if (largest := entry.get("max_error_estimate")) is None:
            continue
        where = f"{kernel}, t={entry['time']:g}, ridge {entry['ridge']:g}"
        if not math.isfinite(entry["median_error_estimate"]):
            lines.append(f"numerical error ({where}): neither bounded nor estimated")
            continue
        most = f"at most {largest:.0e}" if math.isfinite(largest) else "not estimated for some"
        lines.append(
            f"numerical error ({where}): typically {entry['typical_error']:.0e}, {most} for {STATED:.0%} of predictions"
            + (f"; {refined[kernel]}" if entry.get("refined") else "")
        )
    return lines


def _table(metrics: dict[str, Any], name: str, title: str) -> list[str]:
    rows: dict[tuple[str, float], list[str]] = {}
    times: list[float] = []
    doubts = [entry.get("doubt") for entry in metrics["entries"]]
    for entry, doubt in zip(metrics["entries"], doubts, strict=True):
        value = entry.get(name)
        if entry["time"] not in times:
            times.append(entry["time"])
        text = "-" if value is None else _number(value)
        # A space instead of a mark keeps the digits aligned.
        mark = (MARK if doubt else " ") if any(doubts) else ""
        rows.setdefault((entry["kernel"], entry["ridge"]), []).append(text + mark)
    # More columns would wrap in most terminals. The first and the last time are always shown.
    shown = np.unique(np.linspace(0, len(times) - 1, min(len(times), TIMES_SHOWN)).round().astype(int)).tolist()
    times, every = [times[i] for i in shown], len(times)
    rows = {key: [values[i] for i in shown] for key, values in rows.items()}
    width = max(9, *(len(f"t={t:g}") + 1 for t in times), *(len(v) + 1 for vs in rows.values() for v in vs))
    head = f"{title:<22}" + "".join(f"{f't={t:g}':>{width}}" for t in times)
    lines = [head]
    lines += [f"{f'{k}, ridge {r:g}':<22}" + "".join(f"{v:>{width}}" for v in vs) for (k, r), vs in rows.items()]
    if len(times) < every:
        lines.append(f"({len(times)} of {every} times; the report and metrics.json have all)")
    return lines + [f"{MARK} {text}" for text in legend(doubts)]


def _number(value: float) -> str:
    """Return four decimals, or four digits of numbers that are too large or too small for them."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.4g}"


def fold_lines(metrics: dict[str, Any]) -> list[str]:
    """Return a line per kernel on the best result of cross-validation."""
    lines = []
    for kernel, record in (metrics.get("cross_validation") or {}).items():
        best, name = record["best"], "accuracy" if "accuracy" in record else "rmse"
        if best is None:
            continue
        time = best["time"] if best["time"] == "inf" else format(best["time"], "g")
        found = f"{name} {best[name]:.4g} +- {best[f'{name}_standard_error']:.2g}"
        lines.append(
            f"cross-validation, {record['folds']} folds, {kernel}: best at t={time}, ridge {best['ridge']:g}: {found}"
        )
    return lines


def chosen_lines(metrics: dict[str, Any]) -> list[str]:
    """Return a line per kernel on the time and ridge that were chosen on training points."""
    selection = metrics.get("selection")
    if not selection:
        return []
    lines = [f"chosen on {selection['chosen_on']}, without the test points:"]
    for kernel, best in selection["chosen"].items():
        name, title, shown = (
            ("accuracy", "accuracy", float) if "accuracy" in best else ("mse", "root mean square", math.sqrt)
        )
        test = best["test"].get(name)
        where = f"t={best['time'] if best['time'] == 'inf' else format(best['time'], 'g')}, ridge {best['ridge']:g}"
        mark = MARK if best["test"].get("doubt") else ""
        # The labels or targets of the test points may be unknown.
        on_test = "" if test is None else f", {_number(shown(test))}{mark} on the test points"
        lines.append(f"  {kernel}: {where}, {title} {_number(shown(best[name]))} on these{on_test}")
    return lines
