"""Families of architectures, as plain lists of layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.parameters import ACTIVATIONS
from ntkpipe.kernels.spec import canonical_spec


def fcn(
    depth: int,
    *,
    width: int = 512,
    w_std: float = 1.4142135623730951,
    b_std: float | None = 0.1,
    activation: str = "relu",
    activation_args: Mapping[str, float] | None = None,
    parameterization: str = "ntk",
) -> list[dict[str, Any]]:
    """A fully connected network: flatten, `depth` times (dense, nonlinearity), a dense readout of 10 features.

    Args:
        depth: hidden layers; 0 is a linear model.
        width: hidden features; changes values in the `standard` parameterisation only.
        w_std: standard deviation of the weights of every layer, the readout included.
        b_std: of the biases; None has none.
        activation: name of a nonlinearity.
        activation_args: its parameters, such as `{"alpha": 0.1}`.
        parameterization: `ntk` or `standard`.

    Returns:
        The canonical spec.

    Raises:
        ConfigError: if the depth is negative, the nonlinearity unknown, or a parameter out of range.
    """
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 0:
        raise ConfigError(f"kernel.depth={depth!r} must be a whole number, at least 0")
    if activation not in ACTIVATIONS:
        raise ConfigError(f"kernel.activation={activation!r} is not one of {', '.join(ACTIVATIONS)}")

    def dense(features: int) -> dict[str, Any]:
        return {
            "op": "dense",
            "features": features,
            "w_std": w_std,
            "b_std": b_std,
            "parameterization": parameterization,
        }

    nonlinearity = dict(activation_args or {}) | {"op": activation}
    hidden = [layer for _ in range(depth) for layer in (dense(width), nonlinearity)]
    return canonical_spec([{"op": "flatten"}, *hidden, dense(10)])
