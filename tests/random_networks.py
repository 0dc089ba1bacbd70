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


def conv_transpose(draw, spatial):
    """To at most 7 pixels a side. Without a bias, pixels that strides above the filter leave out have no variance."""
    strides = [draw(st.sampled_from((1, 2, 3))) if n <= 2 else 1 for n in spatial]
    size, padding = [draw(st.integers(1, 3)) for _ in spatial], draw(st.sampled_from(PADDINGS))
    more = [max(f - s, 0) if padding == "VALID" else 0 for f, s in zip(size, strides, strict=True)]
    out = tuple(n * s + m for n, s, m in zip(spatial, strides, more, strict=True))
    features = draw(st.integers(1, 4))
    layer = {"op": "conv_transpose", "features": features, "filter": size, "strides": strides, "padding": padding}
    return layer | weights(draw), out, features


def resize(draw, spatial):
    shape = [draw(st.sampled_from((-1, 1, 2, 3, 4, 5))) for _ in spatial]
    out = tuple(n if wanted == -1 else wanted for n, wanted in zip(spatial, shape, strict=True))
    method = {"method": draw(st.sampled_from(("linear", "nearest"))), "antialias": draw(st.booleans())}
    return {"op": "resize", "shape": shape} | method, out


def shortcut(draw, spatial, wanted, features):
    """Layers from one extent to another that end with weights."""
    size = [a - b + 1 for a, b in zip(spatial, wanted, strict=True)]
    layer = {"op": "conv", "features": features, "filter": size, "strides": [1, 1], "padding": "VALID"} | weights(draw)
    if min(size) >= 1:
        return [layer]
    return [{"op": "resize", "shape": list(wanted), "method": "nearest"}, layer | {"filter": [1, 1]}]


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
        "mechanism": draw(st.sampled_from(("SOFTMAX", "IDENTITY", "RELU", "ABS"))),
        "w_key_std": 0.9,
        "w_query_std": 0.7,
        "w_value_std": 1.1,
        "w_out_std": 1.2,
        "b_std": draw(st.sampled_from(B_STD)),
    } | positions(draw)


def positions(draw):
    kind = draw(st.sampled_from(("NONE", "SUM", "CONCAT")))
    if kind == "NONE":
        return {}
    return {
        "pos_emb_type": kind,
        "pos_emb_p_norm": draw(st.sampled_from((1, 2))),
        "pos_emb_decay_fn": draw(st.sampled_from(("exp(-0.3 * d)", "exp(-1.5 * d)"))),
        "n_chan_pos_emb": draw(st.sampled_from((None, 3))) if kind == "CONCAT" else None,
        "w_pos_emb_std": 0.8,
        "val_pos_emb": draw(st.booleans()),
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
        choices = ["conv", "conv", "pool", "dropout", "attention", "conv_local", "resize"]
        if max(spatial) <= 5:
            choices.append("conv_transpose")
        if gaussian:
            choices += ["nonlinearity", "nonlinearity", "nonlinearity", "layer_norm"]
        if nesting:
            choices += ["residual_sum", "residual_sum", "repeat", "fan_in"]
        op = draw(st.sampled_from(choices))
        if op == "conv":
            layer, spatial, features = conv(draw, spatial)
            gaussian = True
        elif op == "conv_local":
            layer, spatial, features = conv(draw, spatial)
            layer, gaussian = layer | {"op": "conv_local"}, True
        elif op == "conv_transpose":
            layer, spatial, features = conv_transpose(draw, spatial)
            gaussian = True
        elif op == "resize":
            layer, spatial = resize(draw, spatial)
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
        elif op == "fan_in":
            layer, spatial, features = fan_in(draw, spatial, features, gaussian, nesting)
            gaussian = False
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
        branches.append(shortcut(draw, spatial, out, width))
    if draw(st.booleans()):
        branches.append(shortcut(draw, spatial, out, width))
    return {"op": "residual_sum", "branches": draw(st.permutations(branches))}, out, width


def fan_in(draw, spatial, features, gaussian, nesting):
    """Branches side by side or multiplied, of which one may be without weights."""
    first, out, _, _ = body(draw, spatial, features, gaussian, draw(st.integers(0, 2)), nesting - 1)
    last, out, width = conv(draw, out)
    branches = [[*first, last], shortcut(draw, spatial, out, width)]
    if draw(st.booleans()):
        branches[1].append(nonlinearity(draw))
    if out == spatial and features == width and draw(st.booleans()):
        branches.append([])
    layer = {
        "op": draw(st.sampled_from(("fan_in_product", "fan_in_concat"))),
        "branches": draw(st.permutations(branches)),
    }
    if layer["op"] == "fan_in_product":
        return layer, out, width
    if draw(st.booleans()):
        layer["fractions"] = [0.25, 0.75] if len(branches) == 2 else [0.5, 0.125, 0.375]
    return layer, out, width * len(branches)


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
