"""Joint conditions on the parameters of one layer of a spec, and defaults that follow from other parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.parameters import LAYERS, POSITIONS, SERIES, USUAL_DEGREE


def _with_series(layer: dict[str, Any]) -> dict[str, Any]:
    """Set and check the nodes of a series, so that products of its polynomials are integrated exactly."""
    if layer["degree"] is None and layer["nodes"] is None:
        return layer
    degree = USUAL_DEGREE if layer["degree"] is None else layer["degree"]
    least = 2 * degree + 2
    nodes = least if layer["nodes"] is None else layer["nodes"]
    if nodes < least or nodes % 2:
        raise ConfigError(f"nodes={nodes} must be even and at least 2 * degree + 2 = {least}")
    return layer | {"degree": degree, "nodes": nodes}


def _with_one_formula(layer: dict[str, Any]) -> dict[str, Any]:
    if (layer["function"] is None) == (layer["nngp"] is None):
        raise ConfigError(
            'needs either function, such as "x * sigmoid(x)", or nngp, the kernel as a formula in k, p and q'
        )
    if layer["function"] is None:
        if layer["degree"] is not None or layer["nodes"] is not None:
            raise ConfigError("degree and nodes are for function: nngp is evaluated directly, so leave them out")
        return layer
    return _with_series(layer)


def _with_smoothness(layer: dict[str, Any]) -> dict[str, Any]:
    if (layer["kernel"] == "matern") != (layer["nu"] is not None):
        raise ConfigError(
            "nu is the smoothness of matern, 0.5, 1.5 or 2.5: it is required for matern and not allowed elsewhere"
        )
    return layer


def _with_strides(layer: dict[str, Any]) -> dict[str, Any]:
    if layer["strides"] is None:
        return layer | {"strides": list(layer["window"])}
    return _with_as_many("window", layer)


def _with_as_many(window: str, layer: dict[str, Any]) -> dict[str, Any]:
    """Check that there are as many strides as window sizes."""
    if len(layer["strides"]) != len(layer[window]):
        if layer["strides"] != [1, 1]:
            raise ConfigError(f"{window}={layer[window]} and strides={layer['strides']} must have as many numbers")
        return layer | {"strides": [1] * len(layer[window])}
    return layer


def _with_attention(layer: dict[str, Any]) -> dict[str, Any]:
    if not layer["linear_scaling"]:
        raise ConfigError(
            "linear_scaling=False has no such kernel, because the products of queries and keys stay random at any "
            "width. Set linear_scaling to true, which divides by their number"
        )
    return _with_positions(layer)


def _with_positions(layer: dict[str, Any]) -> dict[str, Any]:
    """Check the positional embeddings, and leave them out of the spec if there are none.

    Stored kernels are identified by their specs, so specs from earlier versions must not change.
    """
    if layer["pos_emb_type"] == "NONE":
        idle = [p.name for p in POSITIONS if layer[p.name] != p.default]
        if idle:
            raise ConfigError(
                f"{', '.join(idle)}: there are no positional embeddings unless pos_emb_type is SUM or CONCAT"
            )
        return {name: value for name, value in layer.items() if "pos_emb" not in name}
    if layer["pos_emb_type"] == "SUM" and layer["n_chan_pos_emb"] is not None:
        raise ConfigError(
            "n_chan_pos_emb is for pos_emb_type=CONCAT: embeddings that are added have as many channels as the pixels"
        )
    return layer | {"pos_emb_p_norm": 2.0} if layer["pos_emb_decay_fn"] is None else layer


def _on_planes(layer: dict[str, Any]) -> dict[str, Any]:
    layer = _with_as_many("filter", layer)
    if len(layer["filter"]) != 2:
        raise ConfigError(
            f"filter={layer['filter']} must be two integers along height and width, for images and sequences"
        )
    return layer


def _with_shape(layer: dict[str, Any]) -> dict[str, Any]:
    if len(layer["shape"]) != 2:
        raise ConfigError(f"shape={layer['shape']} must be a height and a width")
    if 0 in layer["shape"]:
        raise ConfigError(f"shape={layer['shape']} must be a height and a width of at least 1; -1 keeps the size")
    return layer | {"antialias": True} if layer["method"] == "nearest" else layer


def _with_fractions(layer: dict[str, Any]) -> dict[str, Any]:
    fractions, branches = layer["fractions"], layer["branches"]
    if fractions is None:
        return layer
    if len(fractions) != len(branches):
        raise ConfigError(f"has {len(fractions)} fractions for {len(branches)} branches: give one for each, or none")
    if abs(sum(fractions) - 1.0) > _ROUNDING:
        raise ConfigError(f"fractions are shares of all channels and must sum to 1, not {sum(fractions):g}")
    return layer


# Tolerance for the sum of fractions, so thirds may be written with six digits.
_ROUNDING = 1e-5


def _with_taps(layer: dict[str, Any]) -> dict[str, Any]:
    """Check the taps, and leave uniform taps out of the spec.

    Stored kernels are identified by their specs, so specs from earlier versions must not change.
    """
    layer = _with_as_many("filter", layer)
    if layer["taps"] == "uniform":
        return {name: value for name, value in layer.items() if name != "taps"}
    if set(layer["strides"]) != {1} or layer["padding"] == "VALID" or any(size % 2 == 0 for size in layer["filter"]):
        raise ConfigError(
            "taps=delta needs a central tap at every pixel: filter of odd sizes, strides [1, 1], padding SAME or CIRCULAR"
        )
    if layer["parameterization"] != "ntk":
        raise ConfigError(
            "taps=delta needs parameterization=ntk, because the standard one also trains taps that start at zero"
        )
    return layer


# For each layer with such conditions, a function from its parameters to its parameters in canonical form. It raises `ConfigError`.
JOINT_CONDITIONS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "conv": _with_taps,
    "fan_in_concat": _with_fractions,
    "avg_pool": _with_strides,
    "sum_pool": _with_strides,
    "global_self_attention": _with_attention,
    "resize": _with_shape,
    "conv_transpose": _on_planes,
    "conv_local": _on_planes,
    "elementwise": _with_one_formula,
    "stationary": _with_smoothness,
} | {op: _with_series for op, parameters in LAYERS.items() if parameters[-2:] == SERIES}
