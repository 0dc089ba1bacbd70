"""Finite networks from the spec of an infinite one: forward passes, empirical kernels, weight posteriors, training."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ntkpipe.finite.empirical import Prepared, empirical_kernel, prepare, tile
    from ntkpipe.finite.initialisers import at_width, count_parameters, draw_masks, init, widened
    from ntkpipe.finite.kernel import EmpiricalKernel, read_weights, save_weights
    from ntkpipe.finite.monte_carlo import Estimate, monte_carlo_kernel
    from ntkpipe.finite.network import apply
    from ntkpipe.finite.posterior import WeightPosterior, WeightSamples
    from ntkpipe.finite.sampling import sample
    from ntkpipe.finite.two_layers import Catapult, catapult

__all__ = [
    "Catapult",
    "EmpiricalKernel",
    "Estimate",
    "Prepared",
    "WeightPosterior",
    "WeightSamples",
    "apply",
    "at_width",
    "catapult",
    "count_parameters",
    "draw_masks",
    "empirical_kernel",
    "init",
    "monte_carlo_kernel",
    "prepare",
    "read_weights",
    "sample",
    "save_weights",
    "tile",
    "widened",
]

# Lazy (PEP 562): `ntkpipe/__init__.py` names this package and must not import JAX.
_PUBLIC = {
    "Catapult": "two_layers",
    "EmpiricalKernel": "kernel",
    "Estimate": "monte_carlo",
    "Prepared": "empirical",
    "WeightPosterior": "posterior",
    "WeightSamples": "posterior",
    "apply": "network",
    "at_width": "initialisers",
    "catapult": "two_layers",
    "count_parameters": "initialisers",
    "draw_masks": "initialisers",
    "empirical_kernel": "empirical",
    "init": "initialisers",
    "monte_carlo_kernel": "monte_carlo",
    "prepare": "empirical",
    "read_weights": "kernel",
    "sample": "sampling",
    "save_weights": "kernel",
    "tile": "empirical",
    "widened": "initialisers",
}


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"ntkpipe.finite.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
