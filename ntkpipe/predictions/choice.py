"""Reads from the predictions' attributes which time and ridge were chosen, and on which training images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ntkpipe.predictions.schema import Predictions


def chosen_entries(predictions: Predictions) -> dict[str, tuple[int, int, int]]:
    """Return, by kernel, the entry (kernel, time, ridge) that was chosen on training images; empty without a choice."""
    found = {}
    for name, record in selection_of(predictions).get("kernels", {}).items():
        best = record.get("best")
        if best is None or name not in predictions.kernels:
            continue
        times = np.flatnonzero(predictions.times == time_of(best["time"]))
        ridges = np.flatnonzero(predictions.ridges == best["ridge"])
        if len(times) and len(ridges):
            found[name] = (predictions.kernels.index(name), int(times[0]), int(ridges[0]))
    return found


def selection_of(predictions: Predictions) -> dict[str, Any]:
    """Return the record of `uncertainty.selection` in the predictions; empty if there is none."""
    return predictions.attributes.get("selection") or {}


def basis_of(predictions: Predictions) -> str:
    """Return a clause that describes the points on which the selection was made."""
    selection = selection_of(predictions)
    if selection.get("method") == "held_out":
        count = next(iter(selection["kernels"].values()))["images"]
        return f"the last {count:,} training points, predicted from the others"
    records = list(selection.get("kernels", {}).values())
    if records and not records[0]["exact"]:
        return f"{records[0]['images']:,} training points drawn at random, each predicted from all others"
    return "every training point, predicted from all others"


def selection_metrics(predictions: Predictions, entries: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the selection for `metrics.json`: its curves, and the test metrics of the chosen entries."""
    selection = selection_of(predictions)
    if not selection:
        return None
    _, T, R = predictions.shape[:3]
    chosen = {
        name: {
            **selection["kernels"][name]["best"],
            "test": {
                x: entries[(k * T + t) * R + r].get(x) for x in ("accuracy", "accuracy_standard_error", "mse", "doubt")
            },
        }
        for name, (k, t, r) in chosen_entries(predictions).items()
    }
    return {**selection, "chosen_on": basis_of(predictions), "test_images_used": False, "chosen": chosen}


def time_of(value: float | str) -> float:
    """Return the time of a record as a number. Records hold infinity as the text `inf`."""
    return math.inf if value == "inf" else float(value)
