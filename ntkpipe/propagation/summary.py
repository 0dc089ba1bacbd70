"""A short text about signal propagation in a network."""

from __future__ import annotations

import functools
import json
import math

from ntkpipe.errors import ConfigError
from ntkpipe.propagation.block import block_map
from ntkpipe.propagation.depth import depth_that_loses, depth_that_splits
from ntkpipe.propagation.growth import growth
from ntkpipe.propagation.network import PlainNetwork, Spec, plain_network, repeated_block
from ntkpipe.propagation.phase import Phase, UnsettledError, phase

_REPETITIONS = 20


def summary(spec: Spec, dtype: str = "float64") -> list[str]:
    """Return at most three lines; none for networks without repeated layers, such as stationary kernels.

    Args:
        spec: the list of layers.
        dtype: dtype of the computation, for a warning if the network is too deep for it.
    """
    return list(_summary(json.dumps(list(spec)), dtype))


@functools.lru_cache(maxsize=64)
def _summary(spec_as_json: str, dtype: str) -> tuple[str, ...]:
    spec = json.loads(spec_as_json)
    network = plain_network(spec)
    if network is None:
        return tuple(_of_block(spec))
    try:
        made = phase(network.activation, w_std=network.w_std, b_std=network.b_std)
    except UnsettledError:
        return tuple(growth(network.activation, w_std=network.w_std, b_std=network.b_std, depth=network.depth).lines())
    except ConfigError as error:
        return (str(error),)
    return (*describe_depth(made, network.depth), *precision_warning(made, network, dtype))


def warnings_of_depth(spec: Spec, dtype: str) -> list[str]:
    """Return a warning if the network is too deep for the dtype: one line, or none.

    Args:
        spec: the list of layers.
        dtype: dtype of the computation.
    """
    return [line.removeprefix("warning: ") for line in summary(spec, dtype) if line.startswith("warning: ")]


def describe_depth(made: Phase, depth: int) -> list[str]:
    """Return lines about the phase, the criticality, and the effect of this depth."""
    critical = "" if made.critical_w_std is None else f"; critical w_std at this b_std is {made.critical_w_std:.5g}"
    if made.critical_w_std is None:
        critical = "; no w_std is critical at this b_std"
    star = "none" if math.isnan(made.c_star) else f"{made.c_star:.5g}"
    lines = [f"{made.phase}: q_star {made.q_star:.5g}, chi_1 {made.chi_1:.5g}, c_star {star}{critical}"]
    if math.isnan(made.c_star):
        return [*lines, f"depth {depth}: deep layers act as linear maps, which leave correlations unchanged"]
    if math.isinf(made.xi_c):
        return [*lines, f"depth {depth}: correlations approach 1 as a power of depth, not exponentially"]
    lengths = depth / made.xi_c if made.xi_c > 0.0 else math.inf
    kept = math.exp(-lengths)
    scale = f"{lengths:.2g} correlation lengths ({made.xi_c:.3g} layers)"
    return [*lines, f"depth {depth} is {scale}: deviations of correlations keep {100 * kept:.2g}%"]


def precision_warning(made: Phase, network: PlainNetwork, dtype: str) -> list[str]:
    """Return a warning if the network is too deep for the dtype."""
    lost, split = depth_that_loses(made.xi_c, dtype), depth_that_splits(made.chi_1, dtype)
    if network.depth >= split:
        return [
            f"warning: from depth {math.ceil(split)} on, {dtype} rounding (which grows by chi_1 in every layer) makes "
            f"equal images differ{_remedy(dtype)}"
        ]
    if network.depth >= lost > 0.0:
        return [
            f"warning: from depth {math.ceil(lost)} on, {dtype} cannot represent the differences of "
            f"correlations{_remedy(dtype)}"
        ]
    return []


def _remedy(dtype: str) -> str:
    return ": set kernel.dtype=float64, or fewer layers" if dtype == "float32" else ": set fewer layers"


def _of_block(spec: Spec) -> list[str]:
    try:
        low, high = repeated_block(spec)
        made = block_map(spec, (low, high), repetitions=_REPETITIONS)
    except ConfigError:
        return []
    growth = made.variance[-1] / made.variance[-2]
    return [
        f"block of layers {low} to {high - 1}: each repetition changes the variance by {growth:.4g}, and deviations from "
        f"correlation 1 by {made.slope[-1]:.4g} (after {_REPETITIONS} repetitions)"
    ]
