"""Bytes that the covariances of a pair move through memory, for the limits of `convolutional_tiles.py` and `gpu.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.cost import layer_costs

_MOVING = ("conv", "avg_pool", "global_avg_pool", "flatten", "global_self_attention")


def bytes_moved(spec: Sequence[dict[str, Any]], shape: tuple[int, int, int], itemsize: int) -> int:
    """Return the bytes of both kernels of a pair in the layers that move covariances, including sums and branches."""
    architecture = Architecture.from_spec(spec)
    canonical = architecture.to_spec()

    def entries(layers: Any, costs: Any) -> int:
        total = 0
        for layer, cost in zip(layers, costs, strict=True):
            if layer["op"] == "residual_sum":
                total += sum(entries(*branch) for branch in zip(layer["branches"], cost.branches, strict=True))
            if layer["op"] in _MOVING:
                total += cost.entries
        return total

    return 2 * itemsize * entries(canonical, layer_costs(canonical, architecture.steps(shape)))
