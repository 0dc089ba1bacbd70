"""Initial weights of finite networks, their number, and specs with other widths."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ntkpipe.errors import ConfigError
from ntkpipe.finite.maps import LinearMap
from ntkpipe.finite.network import network
from ntkpipe.kernels.spec import Spec, canonical_spec, name_layer, unrolled

INITIALISERS = ("gaussian", "orthogonal", "delta_orthogonal")
_WIDTHS = ("features", "n_heads", "n_chan_key", "n_chan_val", "n_chan_pos_emb", "n_chan_out")
_WEIGHTED = ("dense", "conv", "conv_transpose", "conv_local", "global_self_attention")


def init(
    spec: Spec, shape: Sequence[int], seed: int = 0, *, initialiser: str = "gaussian", dtype: Any = np.float32
) -> list[tuple[Any, Any]]:
    """Draw the weights of one random network, in the form that `apply` expects.

    Args:
        spec: list of layers.
        shape: shape of one image, `(height, width, channels)` or `(features,)`.
        seed: equal seeds give equal weights, up to rounding if the dtypes differ.
        initialiser: `gaussian`; `orthogonal`: matrices with orthonormal rows or columns times sqrt(max(in, out)), so
            entries have the same variance (filter taps count as inputs); `delta_orthogonal`: the same at the centre of
            the filter, and zero elsewhere (arXiv:1806.05393). Biases are Gaussian.
        dtype: float32 or float64.

    Returns:
        List of `(W, b)`, NumPy arrays, in the order of the layers that have weights.

    Raises:
        ConfigError: if a layer has no finite form (the message names it), or the initialiser is unknown.
    """
    if initialiser not in INITIALISERS:
        raise ConfigError(f"initialiser={initialiser!r} is not one of {', '.join(INITIALISERS)}")
    rng = np.random.default_rng(seed)
    drawn: list[list[np.ndarray]] = []
    biases: list[np.ndarray | None] = []
    for one in network(spec, shape).maps:
        deviation, of_bias = one.deviations
        draw = _DRAW[initialiser]
        matrix = np.stack([draw(rng, one) for _ in range(math.prod(one.repeats))]).reshape(one.shapes[0])
        matrix = (deviation * matrix).astype(dtype)
        if one.entry == len(drawn):
            drawn.append([])
            biases.append(None)
        drawn[-1].append(matrix)
        if one.shapes[1] is not None:
            biases[-1] = (of_bias * rng.standard_normal(one.shapes[1])).astype(dtype)
    return [(w[0] if len(w) == 1 else tuple(w), b) for w, b in zip(drawn, biases, strict=True)]


def _gaussian(rng: np.random.Generator, one: LinearMap) -> np.ndarray:
    return rng.standard_normal(one.shape)


def _orthogonal(rng: np.random.Generator, one: LinearMap) -> np.ndarray:
    if one.pixels is not None:
        each = [_orthonormal(rng, *one.shape[2:]) for _ in range(math.prod(one.pixels))]
        return np.stack(each).reshape(one.shape)
    if one.filter is None and len(one.shape) == 3:  # each head of an attention separately
        return np.stack([_orthonormal(rng, *one.shape[1:]) for _ in range(one.shape[0])])
    return _orthonormal(rng, math.prod(one.shape[:-1]), one.shape[-1]).reshape(one.shape)


def _delta_orthogonal(rng: np.random.Generator, one: LinearMap) -> np.ndarray:
    if one.filter is None:
        return _orthogonal(rng, one)
    made = np.zeros(one.shape)
    # The mean variance per tap is 1, and the centre has all of it.
    centre = tuple(size // 2 for size in one.filter)
    made[centre] = math.sqrt(math.prod(one.filter)) * _orthonormal(rng, *one.shape[-2:])
    return made


def _orthonormal(rng: np.random.Generator, inputs: int, outputs: int) -> np.ndarray:
    """Return a uniformly distributed matrix with orthonormal rows or columns, scaled to entries of unit variance."""
    larger, smaller = max(inputs, outputs), min(inputs, outputs)
    q, r = np.linalg.qr(rng.standard_normal((larger, smaller)))
    # The sign of R's diagonal makes it uniform (Mezzadri 2007).
    q = q * np.where(np.diagonal(r) < 0, -1.0, 1.0) * math.sqrt(larger)
    return q if inputs >= outputs else q.T


_DRAW = {"gaussian": _gaussian, "orthogonal": _orthogonal, "delta_orthogonal": _delta_orthogonal}


def draw_masks(spec: Spec, shape: Sequence[int], n: int, seed: int = 0, *, dtype: Any = np.float32) -> list[np.ndarray]:
    """Draw dropout masks for `n` images: 1 with the layer's rate, else 0, independently per image, pixel and
    channel.
    """
    rng = np.random.default_rng(seed)
    return [(rng.random((n, *of_one)) < rate).astype(dtype) for of_one, rate in network(spec, shape).masks]


def count_parameters(spec: Spec, shape: Sequence[int]) -> dict[str, int]:
    """Return the number of weights and biases of every layer that has them, by name, such as `layer 1 (dense)`."""
    made: dict[str, int] = {}
    for one in network(spec, shape).maps:
        made[one.layer] = made.get(one.layer, 0) + one.parameters
    return made


def widened(spec: Spec, factor: float) -> list[dict[str, Any]]:
    """Return the same network with all hidden widths multiplied by a factor; the number of outputs does not change.

    Args:
        spec: list of layers.
        factor: factor above 0; widths are rounded to whole numbers.

    Raises:
        ConfigError: if a width would be below 1; the message names the layer.
    """
    if not (math.isfinite(factor) and factor > 0):
        raise ConfigError(f"a factor of widths must be finite and above 0, got {factor!r}")
    made = copy.deepcopy(canonical_spec(spec))
    _widen(made, factor, is_end=True, place="")
    return made


def at_width(spec: Spec, width: int) -> list[dict[str, Any]]:
    """Return the same network scaled so that its narrowest hidden layer has this width.

    Other hidden layers are scaled in proportion. A network without hidden layers is returned unchanged.

    Raises:
        ConfigError: if the width is below 1.
    """
    if width < 1:
        raise ConfigError(f"width={width} must be at least 1")
    hidden = _hidden(widened(spec, 1.0), is_end=True)[0]
    return widened(spec, width / min(hidden)) if hidden else widened(spec, 1.0)


def _hidden(layers: list[dict[str, Any]], *, is_end: bool) -> tuple[list[int], bool]:
    """Return the widths of the hidden layers from last to first, and True if no readout was found."""
    found: list[int] = []
    for layer in reversed(layers):
        if layer["op"] == "residual_sum":
            parts = [_hidden(branch, is_end=is_end) for branch in layer["branches"]]
            found += [width for part, _ in parts for width in part]
            is_end = any(end for _, end in parts)
        elif layer["op"] == "repeat":
            inner, is_end = _hidden(layer["layers"], is_end=is_end)
            found += inner
        elif layer["op"] in _WEIGHTED:
            found += [] if is_end else [layer["features" if "features" in layer else "n_chan_out"]]
            is_end = False
    return found, is_end


def _widen(layers: list[dict[str, Any]], factor: float, *, is_end: bool, place: str) -> bool:
    """Widen in place, from the last layer to the first; return True if no readout was found yet."""
    for index in range(len(layers) - 1, -1, -1):
        layer, name = layers[index], place + name_layer(index, layers[index])
        if "branches" in layer:
            ends = [
                _widen(branch, factor, is_end=is_end, place=f"{name}, branch {n}, ")
                for n, branch in enumerate(layer["branches"])
            ]
            is_end = any(ends)
        elif layer["op"] == "repeat":
            if is_end and any(inner["op"] in _WEIGHTED for inner in unrolled([layer])):
                raise ConfigError(
                    f"{name} gives the outputs, whose number is fixed: end the network with a dense layer after it"
                )
            _widen(layer["layers"], factor, is_end=is_end, place=f"{name}, ")
        elif layer["op"] in _WEIGHTED:
            for key in (key for key in _WIDTHS if layer.get(key) is not None):
                if is_end and key in ("features", "n_chan_out"):
                    continue
                width = round(layer[key] * factor)
                if width < 1:
                    raise ConfigError(f"{name}: {key}={layer[key]} times {factor:g} is below 1: use a larger factor")
                layer[key] = width
            is_end = False
    return is_end
