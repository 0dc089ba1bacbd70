"""A bound on the NNGP in terms of the NTK, from the last layers of a network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# These layers are linear in the kernels and have no weights, so an inequality before them also holds after them.
_PASSIVE = ("flatten", "global_avg_pool", "avg_pool", "sum_pool", "global_sum_pool", "resize")
_LINEAR = ("dense", "conv", "conv_transpose", "conv_local")
_BASELINES = ("stationary",)


def dominance(spec: Sequence[Mapping[str, Any]], trace: float, smallest: float) -> float:
    """Return a number c with `K <= c T` as matrices, where K is the NNGP and T the NTK of the same images.

    After a linear layer in the `ntk` parameterisation, `T = K + w_std^2 T'` with T' the NTK before the layer, so c = 1.
    In the `standard` parameterisation, `T >= fan_in K' + 1` and `K = w_std^2 K' + b_std^2` with K' the NNGP before the
    layer, so c is at most the larger of `w_std^2` and `b_std^2`. For other networks, c is the trace of K (a bound on
    its largest eigenvalue) divided by the smallest eigenvalue of T.

    Args:
        spec: the canonical list of layers.
        trace: trace of K.
        smallest: smallest eigenvalue of T; 0 if unknown.
    """
    for layer in _backwards(spec):
        op = layer.get("op")
        if op in _PASSIVE:
            continue
        if op in _BASELINES:
            return 1.0
        if op in _LINEAR:
            if layer.get("parameterization", "ntk") == "ntk":
                return 1.0
            return max(1.0, float(layer["w_std"]) ** 2, float(layer.get("b_std") or 0.0) ** 2)
        break
    return trace / smallest if smallest > 0 else math.inf


def _backwards(spec: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield the layers from last to first. One repetition of a `repeat` is enough."""
    for layer in reversed(spec):
        if layer.get("op") == "repeat":
            yield from _backwards(layer["layers"])
        else:
            yield layer
