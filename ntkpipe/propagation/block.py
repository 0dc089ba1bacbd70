"""Maps of variance and correlation for repeated blocks of any layers (residual sums, layer norm, attention).

A block is evaluated with the formulas of its layers on images of one pixel, which represents inputs that are constant
over their pixels. Its slope at correlation 1 is the factor by which it multiplies an incoming NTK, times the incoming
variance divided by the outgoing one. Blocks have no critical line: residual blocks change correlations as powers of
depth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.architecture import precision_context
from ntkpipe.kernels.evaluation.fold import fold_own
from ntkpipe.kernels.evaluation.resolve import Step, resolve
from ntkpipe.kernels.layers.residual import PlaceError
from ntkpipe.kernels.registry import build_layer
from ntkpipe.kernels.spec import canonical_spec, name_layer
from ntkpipe.kernels.state import KernelState, Signature

_GONE = ("flatten", "avg_pool", "sum_pool", "global_avg_pool", "global_sum_pool", "resize")
"""Layers that leave a single pixel unchanged (up to the scale of a sum over pixels)."""


@dataclass(frozen=True)
class BlockMap:
    """The effect of each repetition of a block, arrays `(repetitions,)`.

    Args:
        variance: variance before each repetition.
        slope: slope at 1 of the correlation map of each repetition. Below 1 inputs become more similar, above 1 less.
        gradient: factor by which each repetition multiplies squared gradients.
    """

    variance: np.ndarray
    slope: np.ndarray
    gradient: np.ndarray


def block_map(
    spec: Sequence[Mapping[str, Any]], block: tuple[int, int], *, repetitions: int = 100, variance: float = 1.0
) -> BlockMap:
    """Return the maps of a block of layers that is repeated.

    Args:
        spec: the layers of the whole network.
        block: positions of the first layer and of the layer after the last, counted from 0.
        repetitions: number of repetitions, at least 1.
        variance: variance of the activations before the first repetition, above 0.

    Raises:
        ConfigError: if there are no such layers, they cannot be repeated, or one is random for equal inputs (dropout).
    """
    layers = canonical_spec(spec)
    low, high = block
    if not 0 <= low < high <= len(layers):
        raise ConfigError(
            f"phase.block=[{low},{high}] must be [first, end] with 0 <= first < end <= {len(layers)}, the number of "
            "layers"
        )
    if repetitions < 1 or not (math.isfinite(variance) and variance > 0.0):
        raise ConfigError(f"repetitions={repetitions} must be at least 1, and variance={variance} above 0")
    block_layers = layers[low:high]
    if [layer["op"] for layer in block_layers] == ["repeat"]:
        block_layers = block_layers[0]["layers"]
    steps = _steps(block_layers, low)
    variances, slopes, gradients = (np.full(repetitions, np.nan) for _ in range(3))
    q = variance
    with precision_context(np.float64):
        for k in range(repetitions):
            after, factor = _through(steps, q)
            if not (math.isfinite(after) and after > 0.0):
                raise ConfigError(
                    f"phase.block=[{low},{high}]: the variance {'vanishes' if after == 0.0 else 'overflows'} after {k + 1} "
                    "repetitions: put layer_norm into the block, or set another w_std"
                )
            variances[k], slopes[k], gradients[k] = q, factor * q / after, factor
            q = after
    return BlockMap(variances, slopes, gradients)


def _through(steps: tuple[Step, ...], q: float) -> tuple[float, float]:
    """Return the variance after a block, and the factor by which it multiplies an NTK."""

    def ends(ntk: float) -> tuple[float, float]:
        made = _folded(steps, jnp.asarray(q), jnp.asarray(ntk))
        return float(made[0]), float(made[1])

    # The NTK after the block is linear in the incoming NTK, and the block's own gradients are the constant term. A
    # large
    # incoming NTK makes the constant negligible.
    scale = 1e8 * max(q, 1.0)
    after, with_one = ends(scale)
    return after, (with_one - ends(0.0)[1]) / scale


@partial(jax.jit, static_argnums=0)
def _folded(steps: tuple[Step, ...], q: jax.Array, ntk: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return both kernels of a pixel with itself after the steps."""
    shape = (1, 1, 1, 1, 1)
    state = KernelState(jnp.full(shape, q), jnp.full(shape, ntk), steps[0].incoming, is_own=True)
    made, _ = fold_own(steps, state)
    assert made.ntk is not None
    return jnp.ravel(made.nngp)[0], jnp.ravel(made.ntk)[0]


def _steps(layers: Sequence[Mapping[str, Any]], first: int) -> tuple[Step, ...]:
    kept = _on_one_pixel(layers)
    if not kept:
        raise ConfigError(
            f"phase.block=[{first},{first + len(layers)}] has no layer that acts within a pixel: choose other layers"
        )
    try:
        made = [build_layer(layer) for layer in canonical_spec(kept)]
        steps = resolve(made, Signature((1, 1), 1, is_gaussian=True), wanted=((0,), (0,)), own=True)
    except PlaceError as error:
        raise ConfigError(
            f"the layers of phase.block=[{first},{first + len(layers)}] cannot be composed: {error}"
        ) from None
    if not steps[-1].outgoing.is_gaussian:
        raise ConfigError(
            f"phase.block=[{first},{first + len(layers)}] must begin after a linear layer and end with one, as residual sums and "
            "[nonlinearity, dense] do, so that it can be repeated"
        )
    return steps


def _on_one_pixel(layers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    made = []
    for index, layer in enumerate(layers):
        op = layer["op"]
        if op == "dropout":
            raise ConfigError(
                f"{name_layer(index, layer)} of the block makes equal inputs differ: leave it out of phase.block"
            )
        if op in _GONE:
            continue
        if op == "conv_transpose" and layer["strides"] != [1, 1]:
            raise ConfigError(
                f"{name_layer(index, layer)} of the block leaves gaps between pixels, so a constant image does not "
                "stay constant: leave it out of phase.block"
            )
        if op in ("dense", "conv", "conv_transpose", "conv_local"):
            kept = {key: layer[key] for key in ("w_std", "b_std", "parameterization")}
            made.append({"op": "conv", "features": 1, "filter": [1, 1], **kept})
        elif op == "repeat":
            if inner := _on_one_pixel(layer["layers"]):
                made.append({**layer, "layers": inner})
        elif op == "fan_in_concat" and layer["fractions"] is None:
            raise ConfigError(
                f"{name_layer(index, layer)} of the block takes its fractions from the widths of its branches, which "
                "a single pixel does not have: give fractions"
            )
        elif "branches" in layer:
            made.append({**layer, "branches": [_on_one_pixel(branch) for branch in layer["branches"]]})
        elif op == "global_self_attention":
            made.append({**layer, "n_chan_out": 1})
        else:
            made.append(dict(layer))
    return made
