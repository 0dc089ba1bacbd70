"""neural-tangents' constructors, for code that comes from there: `from ntkpipe import stax`.

Names, parameters and defaults are the peer's (Novak et al. 2020, arXiv:1912.02803), so that a network is written as it was:

    network = stax.serial(stax.Dense(512), stax.Relu(), stax.Dense(1))
    network(x1, x2).ntk

`serial` gives a `Network`, which is an `Architecture` and goes wherever one does. `docs/migrating.md` says of every public
function of the peer what stands for it here. What has no layer here raises a `ConfigError` that names the reason.
"""

from __future__ import annotations

from ntkpipe.stax.absent import (
    Aggregate,
    DotGeneral,
    Index,
    Slice,
    layer,
    requires,
    supports_masking,
    unmask_fn,
)
from ntkpipe.stax.elementwise import (
    ABRelu,
    Abs,
    Cos,
    Elementwise,
    ElementwiseNumerical,
    Erf,
    Exp,
    ExpNormalized,
    Gabor,
    Gaussian,
    Gelu,
    Hermite,
    LeakyRelu,
    Monomial,
    Polynomial,
    Rbf,
    RectifiedMonomial,
    Relu,
    Sigmoid_like,
    Sign,
    Sin,
)
from ntkpipe.stax.linear import (
    AvgPool,
    Conv,
    ConvLocal,
    ConvTranspose,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool,
    GlobalSelfAttention,
    GlobalSumPool,
    Identity,
    ImageResize,
    LayerNorm,
    SumPool,
)
from ntkpipe.stax.network import FanInConcat, FanInProd, FanInSum, FanOut, Network, Piece, parallel, repeat, serial
from ntkpipe.stax.values import AttentionMechanism, Padding, PositionalEmbedding

__all__ = [
    "ABRelu",
    "Abs",
    "Aggregate",
    "AttentionMechanism",
    "AvgPool",
    "Conv",
    "ConvLocal",
    "ConvTranspose",
    "Cos",
    "Dense",
    "DotGeneral",
    "Dropout",
    "Elementwise",
    "ElementwiseNumerical",
    "Erf",
    "Exp",
    "ExpNormalized",
    "FanInConcat",
    "FanInProd",
    "FanInSum",
    "FanOut",
    "Flatten",
    "Gabor",
    "Gaussian",
    "Gelu",
    "GlobalAvgPool",
    "GlobalSelfAttention",
    "GlobalSumPool",
    "Hermite",
    "Identity",
    "ImageResize",
    "Index",
    "LayerNorm",
    "LeakyRelu",
    "Monomial",
    "Network",
    "Padding",
    "Piece",
    "Polynomial",
    "PositionalEmbedding",
    "Rbf",
    "RectifiedMonomial",
    "Relu",
    "Sigmoid_like",
    "Sign",
    "Sin",
    "Slice",
    "SumPool",
    "layer",
    "parallel",
    "repeat",
    "requires",
    "serial",
    "supports_masking",
    "unmask_fn",
]
