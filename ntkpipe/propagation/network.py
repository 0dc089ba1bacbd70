"""What of a list of layers signal propagation knows: one repeated nonlinearity, or a block."""

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
    """Linear layers with equal deviations and one nonlinearity between them.

    Args:
        activation: the nonlinearity's layer.
        w_std: of every linear layer.
        b_std: likewise; 0 if there are no biases.
        depth: hidden layers, a nonlinearity each.
        filters: of the convolutions, without repetitions.
    """

    activation: Mapping[str, Any]
    w_std: float
    b_std: float
    depth: int
    filters: tuple[tuple[int, int], ...]


def plain_network(spec: Spec) -> PlainNetwork | None:
    """The network, if it is a plain one; None if it has other layers, or several deviations or nonlinearities."""
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
    """The block that is looked at unless another is named: the first repeat, or the first residual sum, or from a nonlinearity to
    the next linear layer.

    Raises:
        ConfigError: if there is none.
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
