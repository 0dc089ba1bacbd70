"""An explicit registry from the spec of a layer to the layer. Specs never contain import paths."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ntkpipe.kernels.layers.attention import SelfAttention
from ntkpipe.kernels.layers.baseline import Stationary
from ntkpipe.kernels.layers.convolution import Conv
from ntkpipe.kernels.layers.dropout import Dropout
from ntkpipe.kernels.layers.fan_in import FanInConcat, FanInProduct
from ntkpipe.kernels.layers.linear import Dense, Flatten
from ntkpipe.kernels.layers.local import ConvLocal
from ntkpipe.kernels.layers.mask import Mask, MaskedSelfAttention
from ntkpipe.kernels.layers.nonlinear.base import Identity, Nonlinearity
from ntkpipe.kernels.layers.nonlinear.elementwise import Elementwise, ElementwiseKernel
from ntkpipe.kernels.layers.nonlinear.exponential import Exp, ExpNormalized, Gaussian, Rbf, Sin
from ntkpipe.kernels.layers.nonlinear.piecewise import ABRelu, RectifiedMonomial, Sign
from ntkpipe.kernels.layers.nonlinear.polynomial import Hermite, Monomial
from ntkpipe.kernels.layers.nonlinear.sigmoidal import SIGMOID_LIKE_SCALE, Erf, Gelu
from ntkpipe.kernels.layers.normalisation import LayerNorm
from ntkpipe.kernels.layers.pooling import AvgPool, GlobalPool, SumPool
from ntkpipe.kernels.layers.positions import PositionalEmbedding
from ntkpipe.kernels.layers.repeat import Repeat
from ntkpipe.kernels.layers.residual import ResidualSum
from ntkpipe.kernels.layers.resize import Resize
from ntkpipe.kernels.layers.transposed import ConvTranspose
from ntkpipe.kernels.parameters import USUAL_DEGREE, acting_filter
from ntkpipe.kernels.state import Layer


def _elementwise(function: str | None, nngp: str | None, degree: int | None, nodes: int | None) -> Nonlinearity:
    return ElementwiseKernel(str(nngp)) if function is None else _expanded(function, degree, nodes)


def _expanded(function: str, degree: int | None, nodes: int | None) -> Nonlinearity:
    degree = USUAL_DEGREE if degree is None else degree
    return Elementwise(function, degree, 2 * degree + 2 if nodes is None else nodes)


def _formula(template: str) -> Callable[..., Nonlinearity]:
    """Return the constructor of a nonlinearity that is given by a formula, with its parameters in braces."""

    def make(degree: int | None, nodes: int | None, **parameters: float) -> Nonlinearity:
        return _expanded(template.format(**{name: repr(value) for name, value in parameters.items()}), degree, nodes)

    return make


def _attention(
    n_heads: int,
    n_chan_out: int,
    n_chan_key: int,
    n_chan_val: int,
    linear_scaling: bool,
    make: Callable[..., Layer] = SelfAttention,
    **parameters: Any,
) -> Layer:
    """Return an attention layer. The numbers of heads, keys and values are for finite networks, and infinite here."""
    del n_heads, n_chan_key, n_chan_val, linear_scaling
    plain = {name: value for name, value in parameters.items() if "pos_emb" not in name}
    return make(**plain, features=n_chan_out, positions=positional_embedding(parameters))


def positional_embedding(attention: Mapping[str, Any]) -> PositionalEmbedding | None:
    """Return the positional embedding of a canonical `global_self_attention`, or None."""
    kind = attention.get("pos_emb_type", "NONE")
    if kind == "NONE":
        return None
    return PositionalEmbedding(
        concat=kind == "CONCAT",
        p_norm=attention["pos_emb_p_norm"],
        decay=attention["pos_emb_decay_fn"],
        channels=attention["n_chan_pos_emb"],
        std=attention["w_pos_emb_std"],
        in_values=attention["val_pos_emb"],
    )


def _conv(filter: Sequence[int], taps: str = "uniform", **parameters: Any) -> Layer:
    """Return a convolution. Delta taps have the kernel of a 1 x 1 convolution, because the central tap has all
    variance.
    """
    return Conv(filter=acting_filter({"filter": filter, "taps": taps}), **parameters)


_MAKERS: dict[str, Callable[..., Layer]] = {
    "flatten": Flatten,
    "dense": Dense,
    "conv": _conv,
    "conv_transpose": ConvTranspose,
    "conv_local": ConvLocal,
    "resize": Resize,
    "avg_pool": AvgPool,
    "sum_pool": SumPool,
    "global_avg_pool": lambda: GlobalPool(is_mean=True),
    "global_sum_pool": lambda: GlobalPool(is_mean=False),
    "residual_sum": ResidualSum,
    "fan_in_concat": FanInConcat,
    "fan_in_product": FanInProduct,
    "global_self_attention": _attention,
    "dropout": Dropout,
    "relu": lambda: ABRelu(0.0, 1.0),
    "leaky_relu": lambda alpha: ABRelu(alpha, 1.0),
    "ab_relu": ABRelu,
    "erf": Erf,
    "gelu": Gelu,
    "sin": Sin,
    "cos": lambda a, b, c: Sin(a, b, c + 0.5 * math.pi),
    "identity": Identity,
    "abs": lambda: ABRelu(-1.0, 1.0),
    "sign": Sign,
    "monomial": Monomial,
    "rectified_monomial": RectifiedMonomial,
    "hermite": Hermite,
    "exp": Exp,
    "exp_normalized": ExpNormalized,
    "rbf": Rbf,
    "gaussian": Gaussian,
    "sigmoid_like": lambda: Erf(0.5, 1.0 / SIGMOID_LIKE_SCALE, 0.5),
    "elementwise": _elementwise,
    "tanh": _formula("tanh(x)"),
    "sigmoid": _formula("sigmoid(x)"),
    "swish": _formula("x * sigmoid({beta} * x)"),
    "softplus": _formula("softplus(x)"),
    "mish": _formula("x * tanh(softplus(x))"),
    "elu": _formula("max(x, 0) + {alpha} * expm1(min(x, 0))"),
    "stationary": Stationary,
    "layer_norm": LayerNorm,
    # Used by `sequences.masked_spec`; users' specs cannot contain these.
    "mask": Mask,
    "masked_attention": lambda **parameters: _attention(**parameters, make=MaskedSelfAttention),
}


def build_layer(layer: Mapping[str, Any]) -> Layer:
    """Return the layer of a canonical spec."""
    if layer["op"] == "repeat":
        return Repeat(layer["times"], tuple(build_layer(inner) for inner in layer["layers"]))
    # Layers must be hashable, because they are keys of compiled programs.
    parameters = {name: tuple(v) if isinstance(v, list) else v for name, v in layer.items() if name != "op"}
    if "branches" in layer:
        parameters["branches"] = tuple(tuple(build_layer(inner) for inner in branch) for branch in layer["branches"])
    return _MAKERS[layer["op"]](**parameters)
