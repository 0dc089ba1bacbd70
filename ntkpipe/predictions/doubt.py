"""Marks numbers that may be entirely wrong, with the reason."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ntkpipe.predictions.schema import Predictions


MARK = "*"

REASONS = {
    "minimum_norm": (
        "directions below the rounding error are left out: this is the minimum-norm solution, and no error bound is "
        "known"
    ),
    "no_bound": "no bound on the numerical error is known",
    "bound_exceeds_prediction": "the bound on the numerical error is larger than the predictions themselves",
    "estimate_exceeds_prediction": "the estimate of the numerical error is larger than the predictions themselves",
    "not_finite": "the predictions are not finite numbers",
}


def doubt_of(predictions: Predictions, entry: tuple[int, int, int]) -> str | None:
    """Return a key of `REASONS` if the numbers of an entry may be entirely wrong, otherwise None.

    The result is None if the error estimate, or the bound if there is no estimate, is informative for most points.

    Args:
        predictions: predictions of a run.
        entry: positions of kernel, time and ridge.
    """
    mean, bound = predictions.mean[entry], predictions.error_bound[entry]
    if not np.isfinite(mean).all():
        return "not_finite"
    if predictions.bound_kind[entry] == "minimum_norm":
        return "minimum_norm"
    if np.isinf(bound).any():
        return "no_bound"
    size = np.sqrt(np.mean(mean**2))
    if predictions.error_estimate is not None:
        return "estimate_exceeds_prediction" if np.median(predictions.error_estimate[entry]) > size else None
    return "bound_exceeds_prediction" if np.median(bound) > size else None


def legend(doubts: Iterable[str | None]) -> list[str]:
    """Return a line for every reason among the shown doubts."""
    met = set(doubts)
    return [text for reason, text in REASONS.items() if reason in met]
