"""Which time and ridge training images chose, and on what: read from the predictions' attributes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ntkpipe.predictions.schema import Predictions


def chosen_entries(predictions: Predictions) -> dict[str, tuple[int, int, int]]:
    """Kernel -> (kernel, time, ridge) of what was chosen on training images; empty without a selection."""
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
    """What `uncertainty.selection` has left in the predictions; empty if nothing."""
    return predictions.attributes.get("selection") or {}


def basis_of(predictions: Predictions) -> str:
    """On what was chosen, as a clause."""
    selection = selection_of(predictions)
    if selection.get("method") == "held_out":
        count = next(iter(selection["kernels"].values()))["images"]
        return f"the last {count:,} training points, predicted from the others"
    records = list(selection.get("kernels", {}).values())
    if records and not records[0]["exact"]:
        return f"{records[0]['images']:,} training points drawn at random, each predicted from all others"
    return "every training point, predicted from all others"


def selection_metrics(predictions: Predictions, entries: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The selection for `metrics.json`: its curves, and the test metrics of what was chosen."""
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
    """A time as it stands in a record, where infinity is a word."""
    return math.inf if value == "inf" else float(value)
