"""Small networks that have every kind of layer, for tests of finite networks."""

from __future__ import annotations

GAP, FLATTEN = {"op": "global_avg_pool"}, {"op": "flatten"}
STANDARD = {"parameterization": "standard"}


def dense(features=3, w_std=1.3, b_std=0.2, **more):
    return {"op": "dense", "features": features, "w_std": w_std, "b_std": b_std, **more}


def conv(size=3, strides=1, padding="SAME", features=4, w_std=1.2, b_std=0.3, **more):
    window = {"filter": [size, size], "strides": [strides, strides], "padding": padding}
    return {"op": "conv", "features": features, "w_std": w_std, "b_std": b_std, **window, **more}


def pool(op, size, strides, padding, **more):
    return {"op": op, "window": [size, size], "strides": [strides, strides], "padding": padding, **more}


def attention(mechanism, b_std=0.3):
    return {
        "op": "global_self_attention",
        "n_heads": 2,
        "n_chan_out": 4,
        "n_chan_key": 3,
        "n_chan_val": 2,
        "mechanism": mechanism,
        "w_key_std": 0.9,
        "w_query_std": 1.2,
        "b_std": b_std,
    }


def repeat(times, *layers):
    return {"op": "repeat", "times": times, "layers": list(layers)}


def residual(*branches):
    return {"op": "residual_sum", "branches": [list(branch) for branch in branches]}


def concat(*branches, fractions=None):
    return {"op": "fan_in_concat", "branches": [list(branch) for branch in branches], "fractions": fractions}


def product(*branches):
    return {"op": "fan_in_product", "branches": [list(branch) for branch in branches]}


def resize(height, width, method="linear", **more):
    return {"op": "resize", "shape": [height, width], "method": method, **more}


def placed(mechanism, kind, **more):
    return attention(mechanism) | {"pos_emb_type": kind, "w_pos_emb_std": 0.8} | more


ACTIVATIONS = [
    {"op": "relu"},
    {"op": "leaky_relu", "alpha": 0.1},
    {"op": "ab_relu", "a": -0.5, "b": 1.2},
    {"op": "erf", "a": 1.3, "b": 0.7, "c": 0.4},
    {"op": "gelu"},
    {"op": "sin", "a": 1.2, "b": 0.8, "c": 0.3},
    {"op": "cos", "a": 1.2, "b": 0.8, "c": 0.3},
    {"op": "identity"},
    {"op": "abs"},
    {"op": "sign"},
    {"op": "monomial", "degree": 3},
    {"op": "rectified_monomial", "degree": 2},
    {"op": "rectified_monomial", "degree": 0},
    {"op": "hermite", "degree": 4},
    {"op": "exp", "b": 0.3},
    {"op": "rbf", "gamma": 0.4},
    {"op": "gaussian", "b": -0.7},
    {"op": "sigmoid_like"},
    {"op": "elementwise", "function": "x * atan(x)"},
    {"op": "tanh"},
    {"op": "sigmoid"},
    {"op": "swish", "beta": 1.2},
    {"op": "softplus"},
    {"op": "mish"},
    {"op": "elu", "alpha": 0.8},
]
ERF = {"op": "erf"}
# Widths at which both ways of convolutions are taken: few pixels and many channels want pairs of pixels.
NETWORKS = {
    "dense": [FLATTEN, dense(5), ERF, dense(4, b_std=None), ERF, dense()],
    "dense_standard": [FLATTEN, dense(5, **STANDARD), ERF, dense(4, b_std=None, **STANDARD), ERF, dense(**STANDARD)],
    "conv": [conv(), ERF, conv(2, b_std=None), ERF, FLATTEN, dense()],
    "conv_standard": [conv(**STANDARD), ERF, conv(2, **STANDARD), ERF, GAP, dense(**STANDARD)],
    "strided": [conv(3, 2), ERF, conv(3, 2), ERF, GAP, dense()],
    "valid": [conv(2, 1, "VALID"), ERF, conv(2, 2, "VALID"), ERF, FLATTEN, dense()],
    "circular": [conv(3, 1, "CIRCULAR"), ERF, conv(2, 3, "CIRCULAR"), ERF, GAP, dense()],
    "wide_conv": [conv(2, 2, features=24), ERF, conv(3, features=40), ERF, conv(1, features=40), ERF, GAP, dense()],
    "avg_pool": [conv(), ERF, pool("avg_pool", 3, 2, "SAME", normalize_edges=True), conv(2), ERF, FLATTEN, dense()],
    "sum_pool": [conv(), ERF, pool("sum_pool", 2, 1, "CIRCULAR"), conv(2), {"op": "global_sum_pool"}, dense()],
    "layer_norm": [
        conv(),
        {"op": "layer_norm", "eps": 0.1},
        ERF,
        conv(),
        {"op": "layer_norm", "axis": [1, 2, 3]},
        GAP,
        dense(),
    ],
    "residual": [
        conv(),
        residual([ERF, conv(), ERF, conv()], []),
        residual([ERF, conv(3, 2)], [conv(1, 2, b_std=None)]),
        GAP,
        dense(),
    ],
    "repeat": [
        FLATTEN,
        dense(4),
        repeat(3, ERF, dense(4)),
        repeat(2, ERF, dense(4, b_std=None, **STANDARD)),
        ERF,
        dense(),
    ],
    "repeated_conv": [
        conv(),
        repeat(2, ERF, conv(), repeat(2, ERF, conv(2))),
        residual([repeat(2, ERF, conv())], []),
        GAP,
        dense(),
    ],
    "repeated_pool": [
        conv(),
        repeat(2, ERF, attention("RELU"), pool("avg_pool", 2, 1, "SAME", normalize_edges=True)),
        GAP,
        dense(),
    ],
    "concat": [conv(), concat([ERF], [ERF, conv(features=6)], []), conv(2), ERF, FLATTEN, dense()],
    "fractions": [conv(), concat([ERF, conv()], [conv(1, features=2)], fractions=[0.3, 0.7]), GAP, dense()],
    "product": [conv(), product([conv(), ERF], [conv(1)], []), conv(2), ERF, GAP, dense()],
    "transposed": [conv(2, 2), ERF, conv(3, 2, op="conv_transpose"), ERF, GAP, dense()],
    "transposed_valid": [conv(2, 3, "VALID", op="conv_transpose", **STANDARD), ERF, FLATTEN, dense()],
    "transposed_circular": [conv(4, 1, "CIRCULAR", op="conv_transpose"), ERF, conv(2, 2), GAP, dense()],
    "local": [conv(op="conv_local"), ERF, conv(2, 2, op="conv_local", b_std=None), ERF, GAP, dense()],
    "local_standard": [conv(2, 1, "CIRCULAR", op="conv_local", **STANDARD), ERF, FLATTEN, dense()],
    "resized": [conv(), ERF, resize(3, 7), conv(2), ERF, resize(-1, 4, "nearest"), FLATTEN, dense()],
    "abs_attention": [conv(), ERF, attention("ABS"), ERF, GAP, dense()],
    "added_positions": [conv(), placed("SOFTMAX", "SUM", val_pos_emb=True), ERF, GAP, dense()],
    "positions": [
        placed("IDENTITY", "CONCAT", n_chan_pos_emb=5, pos_emb_decay_fn="exp(-0.5 * d)", val_pos_emb=True),
        ERF,
        placed("RELU", "CONCAT"),
        GAP,
        dense(),
    ],
    "softmax": [conv(), ERF, attention("SOFTMAX"), ERF, GAP, dense()],
    "identity_attention": [conv(), ERF, attention("IDENTITY", None), ERF, FLATTEN, dense()],
    "relu_attention": [attention("RELU"), ERF, GAP, dense()],
    "no_readout": [conv(), ERF, GAP],
    "one_output": [conv(), ERF, GAP, dense(1)],
    "no_dropping": [FLATTEN, dense(5), {"op": "dropout", "rate": 1.0}, ERF, dense()],
}
