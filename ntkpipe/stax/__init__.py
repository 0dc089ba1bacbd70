"""The constructors of neural-tangents, for code that uses them: `from ntkpipe import stax`.

Names, parameters and defaults are those of `neural_tangents.stax` (Novak et al. 2020, arXiv:1912.02803):

    network = stax.serial(stax.Dense(512), stax.Relu(), stax.Dense(1))
    network(x1, x2).ntk

`serial` returns a `Network`, which is an `Architecture` and can be used wherever one can. `docs/migrating.md` lists the
counterpart of every public function of neural-tangents. A constructor without a layer here raises a `ConfigError` that
names the reason.
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
