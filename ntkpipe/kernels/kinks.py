"""Networks whose kernel depends on the slope of a nonlinearity at 0, which is a convention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ntkpipe.kernels.spec import inner_lists

_KINKED = ("relu", "leaky_relu", "ab_relu", "abs")


def needs_slope_at_zero(spec: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the NTK of zero points depends on the slope of ReLU or one of its variants at 0.

    It does if a trainable bias starts at exactly 0, that is `b_std=0` in the standard parameterization: activations of
    a zero image or pixel are then 0, but gradients by the biases are not.

    Args:
        spec: canonical list of layers.
    """
    return _passes(spec, False)[0]


def _passes(spec: Sequence[Mapping[str, Any]], begins_at_zero: bool) -> tuple[bool, bool]:
    """Return whether a kink follows such a bias in these layers, and whether such a bias precedes the next layer."""
    for layer in spec:
        if layer["op"] in _KINKED and begins_at_zero:
            return True, True
        if "b_std" in layer:
            # A random bias gives all activations a variance above 0.
            zero = layer["b_std"] == 0.0 and layer.get("parameterization") == "standard"
            begins_at_zero = zero or (begins_at_zero and not layer["b_std"])
        ends = [_passes(inner, begins_at_zero) for inner in inner_lists(layer)]
        if any(found for found, _ in ends):
            return True, True
        begins_at_zero = any(after for _, after in ends) if ends else begins_at_zero
    return False, begins_at_zero
