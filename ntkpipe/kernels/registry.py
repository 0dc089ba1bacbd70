"""From a layer's description to the layer: an explicit registry, never an import path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ntkpipe.kernels.linear import Dense, Flatten
from ntkpipe.kernels.nonlinear import ABRelu, Erf, Gelu, Identity, Sin
from ntkpipe.kernels.normalisation import LayerNorm
from ntkpipe.kernels.state import Layer

_MAKERS: dict[str, Callable[..., Layer]] = {
    "flatten": Flatten,
    "dense": Dense,
    "relu": lambda: ABRelu(0.0, 1.0),
    "leaky_relu": lambda alpha: ABRelu(alpha, 1.0),
    "ab_relu": ABRelu,
    "erf": Erf,
    "gelu": Gelu,
    "sin": Sin,
    "identity": Identity,
    "layer_norm": lambda axis, eps: LayerNorm(tuple(axis), eps),
}


def build_layer(layer: Mapping[str, Any]) -> Layer:
    """The layer that a canonical description names."""
    return _MAKERS[layer["op"]](**{name: value for name, value in layer.items() if name != "op"})
