"""Describes the refinement of answers at the end of training in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ntkpipe.units import counted


def describe_refinement(facts: Mapping[str, Any]) -> str:
    """Return a text such as `refined in float64 (1 step, correction 3e-4)`, or a text that says that it failed.

    The correction is the last one, in units of the weights.
    """
    if "steps" not in facts:
        return "not refined: tiles do not resolve the smallest eigenvalues"
    return f"refined in float64 ({counted(facts['steps'], 'step')}, correction {facts['corrections'][-1]:.0e})"
