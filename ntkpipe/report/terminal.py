"""Results as lines of a terminal."""

from __future__ import annotations

import math
from typing import Any

from ntkpipe.dynamics.estimates import STATED
from ntkpipe.predictions.doubt import MARK, legend


def summary(metrics: dict[str, Any]) -> list[str]:
    """Tables for the terminal, a line per kernel and ridge and a column per time: accuracies; or root mean squared errors, R^2 and
    how many targets 90% intervals hold.

    What may be wrong altogether carries a mark, and a line under the table says why.
    """
    rates = [
        f"{name}: learning rate times curvature {one['rate_times_curvature']:.3g} of {one['edge']:g}: {one['text']}"
        for name, one in (metrics.get("rates") or {}).items()
    ]
    last = [*rates, *error_lines(metrics)]
    if not metrics.get("known", True):
        return [f"{metrics['test_points']:,} points predicted; nothing is known of their labels or targets", *last]
    if metrics["task"] == "classification":
        return [*_table(metrics, "accuracy", "accuracy"), *last]
    lines = _table(metrics, "rmse", "root mean square")
    if (mean := metrics.get("of_the_mean")) is not None:
        lines.append(f"predicting the mean of the training targets: {mean['rmse']:.4g}")
    lines += _table(metrics, "r2", "R^2")
    if any(entry.get("coverage_90") is not None for entry in metrics["entries"]):
        lines += _table(metrics, "coverage_90", "in 90% intervals")
    return lines + last


def error_lines(metrics: dict[str, Any]) -> list[str]:
    """How far predictions may be from those of exact arithmetic, a line per kernel: at the last time and the first ridge."""
    last = {}
    for entry in metrics["entries"]:
        if (found := last.get(entry["kernel"])) is None or entry["time"] > found["time"]:
            last[entry["kernel"]] = entry
    lines = []
    for kernel, entry in last.items():
        if (largest := entry.get("max_error_estimate")) is None:
            continue
        where = f"{kernel}, t={entry['time']:g}, ridge {entry['ridge']:g}"
        if not math.isfinite(entry["median_error_estimate"]):
            lines.append(f"error of a prediction ({where}): nothing bounds it, nor is it estimated")
            continue
        most = f"at most {largest:.0e}" if math.isfinite(largest) else "not estimated for some"
        lines.append(
            f"error of a prediction ({where}): typically {entry['typical_error']:.0e}, {most} ({STATED:.0%} of predictions)"
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
        text = "-" if value is None else f"{value:.4f}"
        # A space where others have a mark keeps the digits in line.
        mark = (MARK if doubt else " ") if any(doubts) else ""
        rows.setdefault((entry["kernel"], entry["ridge"]), []).append(text + mark)
    width = max(9, *(len(f"t={t:g}") + 1 for t in times), *(len(v) + 1 for vs in rows.values() for v in vs))
    head = f"{title:<22}" + "".join(f"{f't={t:g}':>{width}}" for t in times)
    lines = [head]
    lines += [f"{f'{k}, ridge {r:g}':<22}" + "".join(f"{v:>{width}}" for v in vs) for (k, r), vs in rows.items()]
    return lines + [f"{MARK} {text}" for text in legend(doubts)]


def fold_lines(metrics: dict[str, Any]) -> list[str]:
    """What cross-validation finds best, a line per kernel."""
    lines = []
    for kernel, record in (metrics.get("cross_validation") or {}).items():
        best, name = record["best"], "accuracy" if "accuracy" in record else "rmse"
        if best is None:
            continue
        time = best["time"] if best["time"] == "inf" else format(best["time"], "g")
        found = f"{name} {best[name]:.4g} +- {best[f'{name}_standard_error']:.2g}"
        lines.append(
            f"{record['folds']} folds of the training points, {kernel}: best at t={time}, ridge {best['ridge']:g}: {found}"
        )
    return lines


def chosen_lines(metrics: dict[str, Any]) -> list[str]:
    """What was chosen on training points, a line per kernel."""
    selection = metrics.get("selection")
    if not selection:
        return []
    lines = [f"chosen on {selection['chosen_on']}; test points had no part in it:"]
    for kernel, best in selection["chosen"].items():
        name = "mse" if best.get("accuracy") is None else "accuracy"
        lines.append(
            f"  {kernel}: t={best['time'] if best['time'] == 'inf' else format(best['time'], 'g')}, ridge {best['ridge']:g}, "
            f"{name} {best[name]:.4f} there, {best['test'][name]:.4f}{MARK if best['test'].get('doubt') else ''} on the test points"
        )
    return lines
