"""Random small architectures that have a kernel: any nesting of layers that a spec allows, with parameters of every kind."""

from __future__ import annotations

import math

from brute_force import output_extent
from hypothesis import strategies as st

PADDINGS = ("SAME", "VALID", "CIRCULAR")
W_STD, B_STD = (0.9, 1.3, math.sqrt(2)), (None, 0.0, 0.3)


def windows(draw, spatial, largest=3):
    """Size, strides and padding of a window that fits, and the extent of its output."""
    padding = draw(st.sampled_from(PADDINGS))
    size = [draw(st.integers(1, min(largest, n) if padding == "VALID" else largest)) for n in spatial]
    strides = [draw(st.sampled_from((1, 1, 1, 2, 3))) for _ in spatial]
    out = tuple(output_extent(*axis, padding) for axis in zip(spatial, size, strides, strict=True))
    return size, strides, padding, out


def weights(draw):
    return {
        "w_std": draw(st.sampled_from(W_STD)),
        "b_std": draw(st.sampled_from(B_STD)),
        "parameterization": draw(st.sampled_from(("ntk", "standard"))),
    }


def conv(draw, spatial, features=None):
    size, strides, padding, out = windows(draw, spatial)
    features = features or draw(st.integers(1, 4))
    layer = {"op": "conv", "features": features, "filter": size, "strides": strides, "padding": padding}
    return layer | weights(draw), out, features


def shortcut(draw, spatial, wanted, features):
    """A convolution from one extent to another that is not larger."""
    size = [a - b + 1 for a, b in zip(spatial, wanted, strict=True)]
    layer = {"op": "conv", "features": features, "filter": size, "strides": [1, 1], "padding": "VALID"}
    return layer | weights(draw)


def nonlinearity(draw):
    name = draw(st.sampled_from(("relu", "relu", "erf", "abs", "leaky_relu")))
    return {"op": name} | ({"alpha": 0.2} if name == "leaky_relu" else {})


def attention(draw, features):
    return {
        "op": "global_self_attention",
        "n_heads": 2,
        "n_chan_out": features,
        "n_chan_key": 4,
        "n_chan_val": 4,
        "linear_scaling": True,
        "mechanism": draw(st.sampled_from(("SOFTMAX", "IDENTITY", "RELU"))),
        "w_key_std": 0.9,
        "w_query_std": 0.7,
        "w_value_std": 1.1,
        "w_out_std": 1.2,
        "b_std": draw(st.sampled_from(B_STD)),
    }


def pool(draw, spatial):
    size, strides, padding, out = windows(draw, spatial)
    layer = {"op": "sum_pool", "window": size, "strides": strides, "padding": padding}
    if draw(st.booleans()):
        layer |= {"op": "avg_pool", "normalize_edges": draw(st.booleans())}
    return layer, out


def body(draw, spatial, features, gaussian, length, nesting):
    """Layers up to the readout; where they lead to."""
    made = []
    for _ in range(length):
        choices = ["conv", "conv", "pool", "dropout", "attention"]
        if gaussian:
            choices += ["nonlinearity", "nonlinearity", "nonlinearity", "layer_norm"]
        if nesting:
            choices += ["residual_sum", "residual_sum", "repeat"]
        op = draw(st.sampled_from(choices))
        if op == "conv":
            layer, spatial, features = conv(draw, spatial)
            gaussian = True
        elif op == "pool":
            layer, spatial = pool(draw, spatial)
        elif op == "dropout":
            layer, gaussian = {"op": "dropout", "rate": draw(st.sampled_from((0.5, 0.8, 1.0)))}, gaussian
            gaussian = gaussian and layer["rate"] == 1.0
        elif op == "attention":
            layer, gaussian = attention(draw, features), True
        elif op == "nonlinearity":
            layer, gaussian = nonlinearity(draw), False
        elif op == "repeat":
            inner, out, width, ends_gaussian = body(
                draw, spatial, features, gaussian, draw(st.integers(1, 2)), nesting - 1
            )
            if out != spatial or ends_gaussian != gaussian:  # it cannot follow itself
                made += inner
                spatial, features, gaussian = out, width, ends_gaussian
                continue
            layer, features = {"op": "repeat", "times": draw(st.integers(1, 4)), "layers": inner}, width
        elif op == "layer_norm":
            layer = {"op": "layer_norm", "axis": draw(st.sampled_from(([-1], [1, 2, 3]))), "eps": 1e-3}
        else:
            layer, spatial, features = residual(draw, spatial, features, gaussian, nesting)
            gaussian = True
        made.append(layer)
    return made, spatial, features, gaussian


def residual(draw, spatial, features, gaussian, nesting):
    """A sum of a branch with weights and a shortcut, and perhaps a third branch."""
    first, out, _, _ = body(draw, spatial, features, gaussian, draw(st.integers(0, 2)), nesting - 1)
    last, out, width = conv(draw, out, features if gaussian else None)
    branches = [[*first, last]]
    if gaussian and out == spatial and draw(st.booleans()):
        branches.append([])
    else:
        branches.append([shortcut(draw, spatial, out, width)])
    if draw(st.booleans()):
        branches.append([shortcut(draw, spatial, out, width)])
    return {"op": "residual_sum", "branches": draw(st.permutations(branches))}, out, width


@st.composite
def networks(draw, longest=5):
    """A spec, and the shape of images for it."""
    shape = (draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(st.integers(1, 4)))
    layers, spatial, features, gaussian = body(draw, shape[:2], shape[2], False, draw(st.integers(1, longest)), 2)
    del spatial, features
    layers.append({"op": draw(st.sampled_from(("flatten", "global_avg_pool", "global_sum_pool")))})
    if gaussian and draw(st.booleans()):
        layers.append(nonlinearity(draw))
    layers.append({"op": "dense", "features": 2} | weights(draw))
    return layers, shape
