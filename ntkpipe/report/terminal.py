"""Results as lines of a terminal."""

from __future__ import annotations

from typing import Any

from ntkpipe.predictions.doubt import MARK, legend


def summary(metrics: dict[str, Any]) -> list[str]:
    """The table of accuracies (or losses) for the terminal: a line per kernel and ridge, a column per time.

    What may be wrong altogether carries a mark, and a line under the table says why.
    """
    if not metrics.get("known", True):
        return [f"{metrics['test_points']:,} points predicted; nothing is known of their labels or targets"]
    accurate = metrics["task"] == "classification"
    rows: dict[tuple[str, float], list[str]] = {}
    times: list[float] = []
    doubts = [entry.get("doubt") for entry in metrics["entries"]]
    for entry, doubt in zip(metrics["entries"], doubts, strict=True):
        value = entry["accuracy"] if accurate else entry["mse"]
        if entry["time"] not in times:
            times.append(entry["time"])
        text = "-" if value is None else f"{value:.4f}"
        # A space where others have a mark keeps the digits in line.
        mark = (MARK if doubt else " ") if any(doubts) else ""
        rows.setdefault((entry["kernel"], entry["ridge"]), []).append(text + mark)
    width = max(9, *(len(f"t={t:g}") + 1 for t in times), *(len(v) + 1 for vs in rows.values() for v in vs))
    head = f"{'accuracy' if accurate else 'mse':<22}" + "".join(f"{f't={t:g}':>{width}}" for t in times)
    lines = [head]
    lines += [f"{f'{k}, ridge {r:g}':<22}" + "".join(f"{v:>{width}}" for v in vs) for (k, r), vs in rows.items()]
    return lines + [f"{MARK} {text}" for text in legend(doubts)]


def chosen_lines(metrics: dict[str, Any]) -> list[str]:
    """What was chosen on training images, a line per kernel."""
    selection = metrics.get("selection")
    if not selection:
        return []
    lines = [f"chosen on {selection['chosen_on']}; test images had no part in it:"]
    for kernel, best in selection["chosen"].items():
        name = "mse" if best.get("accuracy") is None else "accuracy"
        lines.append(
            f"  {kernel}: t={best['time'] if best['time'] == 'inf' else format(best['time'], 'g')}, ridge {best['ridge']:g}, "
            f"{name} {best[name]:.4f} there, {best['test'][name]:.4f}{MARK if best['test'].get('doubt') else ''} on the test images"
        )
    return lines
