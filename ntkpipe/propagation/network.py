"""The part of a network that signal propagation analyses: one repeated nonlinearity, or a repeated block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.parameters import ACTIVATIONS, acting_filter
from ntkpipe.kernels.spec import canonical_spec, unrolled

_LINEAR = ("dense", "conv")
_POOLS = ("flatten", "avg_pool", "sum_pool", "global_avg_pool", "global_sum_pool")

Spec = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class PlainNetwork:
    """A network of linear layers with equal standard deviations and one nonlinearity between them.

    Args:
        activation: spec of the nonlinearity.
        w_std: standard deviation of the weights of every linear layer.
        b_std: standard deviation of the biases; 0 if there are none.
        depth: number of hidden layers, with one nonlinearity each.
        filters: distinct filters of the convolutions.
    """

    activation: Mapping[str, Any]
    w_std: float
    b_std: float
    depth: int
    filters: tuple[tuple[int, int], ...]


def plain_network(spec: Spec) -> PlainNetwork | None:
    """Return the plain network, or None if there are other layers, or several standard deviations or nonlinearities."""
    layers = list(unrolled(canonical_spec(spec)))
    linear = [layer for layer in layers if layer["op"] in _LINEAR]
    phis = [layer for layer in layers if layer["op"] in ACTIVATIONS]
    if not phis or not linear or len(layers) > len(linear) + len(phis) + sum(layer["op"] in _POOLS for layer in layers):
        return None
    # No two nonlinearities without a linear layer between them: canonical lists that have them are refused elsewhere.
    deviations = {(layer["w_std"], layer["b_std"] or 0.0) for layer in linear}
    if len(deviations) > 1 or any(phi != phis[0] for phi in phis):
        return None
    w_std, b_std = deviations.pop()
    filters = dict.fromkeys(acting_filter(layer) for layer in linear if layer["op"] == "conv")
    return PlainNetwork(phis[0], w_std, b_std, len(phis), tuple(filters))  # type: ignore[arg-type]


def repeated_block(spec: Spec) -> tuple[int, int]:
    """Return the default block: the first repeat, else the first residual sum, else a nonlinearity to the next linear
    layer.

    Raises:
        ConfigError: if there is no such block.
    """
    layers = canonical_spec(spec)
    ops = [layer["op"] for layer in layers]
    for whole in ("repeat", "residual_sum"):
        if whole in ops:
            return ops.index(whole), ops.index(whole) + 1
    for start, op in enumerate(ops):
        if op not in ACTIVATIONS:
            continue
        for end in range(start + 1, len(ops)):
            if ops[end] in (*_LINEAR, "conv_transpose", "conv_local", "global_self_attention"):
                return start, end + 2 if ops[end + 1 : end + 2] == ["layer_norm"] else end + 1
    raise ConfigError(
        "the network has no repeated block: it needs a residual_sum, or a nonlinearity with a linear layer after it; name one "
        "with phase.block=[first,end]"
    )
