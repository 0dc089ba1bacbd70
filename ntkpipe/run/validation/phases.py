"""Measured phases of training at large learning rates (Lewkowycz et al. 2020, arXiv:2003.02218)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ntkpipe.run.validation.results import Validation

# Ratios of the loss to its initial value. Above the first, the network has left the lazy phase. Above the second, the
# final loss counts as diverging.
_GROWN, _DIVERGED = 1.5, 1e3
# Smallest ratio of the final to the initial curvature in the lazy phase.
_KEPT = 0.5


def phase_of(loss: np.ndarray, curvature: np.ndarray, peak: float) -> str:
    """Return the phase of a network: `lazy`, `catapult`, `diverging` or `unfinished`.

    In the lazy phase, the loss does not grow by more than half and the curvature does not fall by more than half.
    Otherwise, the network is in the catapult phase if the loss ends below its initial value, and unfinished if not.

    Args:
        loss: loss at each step.
        curvature: curvature at each step.
        peak: largest loss at any step.
    """
    start, end = float(loss[0]), float(loss[-1])
    if not np.isfinite(end) or not np.isfinite(peak) or end > _DIVERGED * start:
        return "diverging"
    if peak <= _GROWN * start and curvature[-1] >= _KEPT * curvature[0]:
        return "lazy"
    return "catapult" if end < start else "unfinished"


def phases_of(made: Validation) -> list[dict[str, Any]]:
    """Return, for each width and rate, the number of networks in each phase and medians without those that diverged."""
    rows = []
    for width in sorted(made.rates):
        found = made.rates[width]
        start = found["curvature0"]
        for r, rate in enumerate(made.setting.finite.rates):
            loss, curvature, peak = found["loss"][r], found["curvature"][r], found["peak"][r]
            phases = [phase_of(*one[:2], float(one[2])) for one in zip(loss, curvature, peak, strict=True)]
            good = np.array([one != "diverging" for one in phases])
            share = curvature[good, -1] / start[good]
            rows.append(
                {
                    "width": width,
                    "rate": rate,
                    "phases": {name: phases.count(name) for name in ("lazy", "catapult", "diverging", "unfinished")},
                    "diverging_networks": [k for k, one in enumerate(phases) if one == "diverging"],
                    "curvature_start": float(np.median(start)),
                    "curvature_end": float(np.median(curvature[good, -1])) if good.any() else None,
                    "curvature_end_over_start": float(np.median(share)) if good.any() else None,
                    "rate_times_curvature_end": float(np.median(rate * share)) if good.any() else None,
                    "peak_loss_over_start": float(np.median(peak[good] / loss[good, 0])) if good.any() else None,
                    "loss_end": float(np.median(loss[good, -1])) if good.any() else None,
                    "sparsity_start": float(np.median(found["sparsity"][r][:, 0])),
                    "sparsity_end": float(np.median(found["sparsity"][r][good, -1])) if good.any() else None,
                    "loss": np.median(loss, axis=0).tolist(),
                    "curvature": np.median(curvature, axis=0).tolist(),
                }
            )
    return rows


def lines_of_phases(made: Validation) -> list[str]:
    """Return the lines of a table of phases."""
    lines = [
        f"{made.setting.finite.networks} networks of each width, {made.setting.steps[-1]:,} steps; rates in units of "
        "1 / curvature of each network; medians",
        _row("width", "rate", "lazy", "catapult", "diverging", "peak loss", "final curvature", "rate x end"),
    ]
    for row in phases_of(made):
        phases = row["phases"]
        peak, share, end = row["peak_loss_over_start"], row["curvature_end_over_start"], row["rate_times_curvature_end"]
        unfinished = f"  ({phases['unfinished']} unfinished)" if phases["unfinished"] else ""
        counts = (phases[name] for name in ("lazy", "catapult", "diverging"))
        lines.append(_row(row["width"], f"{row['rate']:g}", *counts, *map(_shown, (peak, share, end))) + unfinished)
    return [*lines, "peak loss and final curvature are relative to the start; the edges are measurements, not a law"]


def _row(*cells: object) -> str:
    return " ".join(f"{cell!s:>{n}}" for cell, n in zip(cells, (6, 6, 5, 9, 10, 10, 14, 11), strict=True))


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
