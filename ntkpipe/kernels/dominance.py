"""How far the NNGP may exceed the NTK, from the last layers of the network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Linear in the kernels and without weights: what holds before them holds after them.
_PASSIVE = ("flatten", "global_avg_pool", "avg_pool", "sum_pool", "global_sum_pool", "resize")
_LINEAR = ("dense", "conv", "conv_transpose", "conv_local")
_BASELINES = ("stationary",)


def dominance(spec: Sequence[Mapping[str, Any]], trace: float, smallest: float) -> float:
    """A number with `K <= dominance T` as matrices, K the NNGP and T the NTK of the same images.

    After a linear layer in the `ntk` parameterisation `T = K + w_std^2 T'`, T' the NTK before it: the number is 1. In the
    `standard` one `T >= fan_in K' + 1` and `K = w_std^2 K' + b_std^2`, K' the NNGP before it: it is at most the larger of `w_std^2`
    and `b_std^2`. For other networks it is the ratio of the largest eigenvalue of K, here its trace, to the smallest of T.

    Args:
        spec: layers of the network, canonical.
        trace: of K.
        smallest: eigenvalue of T; 0 if unknown.
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
    """From the last layer on; of repeated ones the last repetition is enough, unless all are passive."""
    for layer in reversed(spec):
        if layer.get("op") == "repeat":
            yield from _backwards(layer["layers"])
        else:
            yield layer
