"""neural-tangents' words: the same kernels, predictions and refusals."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import peer_networks
import pytest

from ntkpipe import predict_in_memory, stax
from ntkpipe.errors import ConfigError
from ntkpipe.kernels.architecture import Architecture

HERE = Path(__file__).resolve().parent
VALUES = json.loads((HERE / "reference" / "stax.json").read_text())
INPUTS = peer_networks.inputs()
NETWORKS = peer_networks.networks(stax)
# The peer rounds where the angle is nearly 0, on the diagonal; its numerical integrals of Gabor's function are closed forms.
RTOL = 1e-7


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "readme_wide_resnet" else n for n in NETWORKS]
)
def test_kernels_of_the_peer(name):
    make, key = NETWORKS[name]
    x = INPUTS[key]
    cut = 3 if len(x) > 3 else 2
    network = make()
    _, _, kernel_fn = network
    assert isinstance(network, Architecture)
    for pair, (x1, x2) in {"own": (x[:cut], None), "cross": (x[:cut], x[cut:])}.items():
        made = kernel_fn(x1, x2, ("nngp", "ntk"))
        for kernel in ("nngp", "ntk"):
            expected = np.array(VALUES["kernels"][name][pair][kernel])
            found = getattr(made, kernel)
            if (name, pair) == ("rectified_monomial", "own"):  # the peer's are NaN, of a point with itself
                assert np.isfinite(found).all()
                continue
            np.testing.assert_allclose(found, expected, atol=RTOL * np.abs(expected).max(), rtol=0)


def test_every_network_has_values():
    assert set(VALUES["kernels"]) == set(NETWORKS)


def test_the_readme_line_by_line():
    init_fn, apply_fn, kernel_fn = peer_networks.fcn(stax)
    key1, key2 = jax.random.split(jax.random.PRNGKey(1))
    x1, x2 = jax.random.normal(key1, (10, 100)), jax.random.normal(key2, (20, 100))
    nngp, ntk = kernel_fn(x1, x2, "nngp"), kernel_fn(x1, x2, "ntk")
    assert isinstance(ntk, jax.Array)
    assert ntk.shape == (10, 20)
    both = kernel_fn(x1, x2, ("nngp", "ntk"))
    assert bool((both.nngp == nngp).all())
    assert bool((both.ntk == ntk).all())
    turned = kernel_fn(x1, x2, ["ntk", "nngp"])
    assert type(turned)._fields == ("ntk", "nngp")
    assert bool((turned[0] == ntk).all())
    plain = kernel_fn(x1, x2)
    assert bool((plain.nngp == nngp).all())
    for function in (init_fn, apply_fn):
        with pytest.raises(ConfigError, match="infinite width"):
            function(key1, x1)


@pytest.mark.parametrize("get", ["nngp", "ntk"])
@pytest.mark.parametrize("t", [None, 20.0])
def test_predictions_of_the_peer(get, t):
    x, y = INPUTS["points"], np.sin(np.arange(3.0))[:, None]
    made = predict_in_memory(
        peer_networks.fcn(stax),
        x[:3],
        y,
        x[3:],
        times=math.inf if t is None else t,
        ridge=1e-3,
        kernel=get,
        covariance="full",
    )
    expected = VALUES["predictions"][f"{get} {t}"]
    np.testing.assert_allclose(made.mean[0], expected["mean"], atol=1e-7)
    assert made.covariance is not None
    np.testing.assert_allclose(made.covariance[0], expected["covariance"], atol=1e-7)


def test_largest_learning_rate_of_the_peer():
    x, y = INPUTS["points"], np.sin(np.arange(3.0))[:, None]
    made = predict_in_memory(peer_networks.fcn(stax), x[:3], y, x[3:])
    assert made.max_learning_rate == pytest.approx(VALUES["max_learning_rate"], rel=1e-7)


def test_networks_are_architectures_of_the_same_layers():
    spec = [
        {"op": "conv", "features": 4, "filter": [3, 3], "padding": "VALID"},
        {"op": "relu"},
        {"op": "avg_pool", "window": [2, 2], "strides": [1, 1]},
        {"op": "flatten"},
        {"op": "dense", "features": 3, "w_std": 1.5, "b_std": 0.0},
    ]
    network = stax.serial(
        stax.serial(stax.Conv(np.int64(4), (3, 3)), stax.Relu()),
        stax.AvgPool((2, 2), padding=stax.Padding.VALID),
        stax.Identity(),
        stax.Flatten(),
        stax.Dense(3, jnp.float32(1.5), 0.0),
    )
    assert network.fingerprint == Architecture.from_spec(spec).fingerprint
    assert stax.serial(network).fingerprint == network.fingerprint
    assert stax.serial(stax.FanOut(1), stax.parallel(stax.Dense(2)), stax.FanInSum()).to_spec()[0]["op"] == "dense"


def test_functions_with_layers_of_their_own():
    named = {jnp.tanh: "tanh", jax.nn.silu: "swish", jax.nn.softplus: "softplus", jax.nn.sigmoid: "sigmoid"}
    for function, op in named.items():
        for made in (stax.Elementwise(function), stax.ElementwiseNumerical(function, deg=25)):
            assert stax.serial(stax.Dense(1), made).to_spec()[1]["op"] == op
    formula = stax.serial(stax.Dense(1), stax.Elementwise("x * sigmoid(x)")).to_spec()[1]
    assert formula["function"] == "x * sigmoid(x)"
    kernel = stax.serial(stax.Dense(1), stax.Elementwise(nngp_fn="k + k**2")).to_spec()[1]
    assert kernel["nngp"] == "k + k ** 2.0"


POINTS = np.ones((2, 4))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: stax.DotGeneral(), "stax.DotGeneral has no layer here: no layer multiplies"),
        (lambda: stax.ConvTranspose(3, (2,)), "sequences as images of height 1"),
        (lambda: stax.ImageResize((-1, 3, 3, 3), "linear"), "of images and channels are fixed"),
        (lambda: stax.ImageResize((-1, 3, 3, -1), "cubic"), "linear, nearest"),
        (lambda: stax.Aggregate(), "graph"),
        (lambda: stax.FanInConcat(axis=1), "supports only the channels"),
        (lambda: list(stax.serial(stax.FanOut(2), stax.FanInProd())), "independent branches"),
        (lambda: stax.Slice[:, 0], "stax.Index has no layer"),
        (lambda: stax.layer(lambda: None), "formulas"),
        (lambda: stax.Conv(3, (3,)), "sequences as images of height 1"),
        (lambda: stax.Conv(3, (3, 3), dimension_numbers=("NCHW", "OIHW", "NCHW")), "transpose"),
        (lambda: stax.Dense(3, channel_axis=1), "layout='NCHW'"),
        (lambda: stax.Dense(3, parameterization="standard", s=(2, 1)), r"always \(1, 1\)"),
        (lambda: stax.Dense(0), "out_dim=0"),
        (lambda: stax.LayerNorm(axis=(1, 2)), "whole images"),
        (lambda: stax.Dropout(0.5, mode="eval"), "train, test"),
        (
            lambda: stax.GlobalSelfAttention(1, 1, 1, 1, pos_emb_type="SUM", pos_emb_decay_fn=lambda d: d),
            "formula as text here, in the distance d",
        ),
        (lambda: stax.Elementwise(lambda x: x**2), "formula as text"),
        (lambda: stax.Elementwise(nngp_fn=lambda k, p, q: k), "formula as text"),
        (lambda: stax.Elementwise("x", d_nngp_fn="1"), "leave it out"),
        (lambda: stax.serial(stax.Relu), r"write stax.Relu\(\)"),
        (lambda: stax.serial(stax.Dense(1), stax.Dense)(POINTS), r"write stax.Dense\(\)"),
        (lambda: stax.serial(stax.Relu(), stax.Dense(1))(POINTS), r"layer 0 \(relu\)"),
        (lambda: stax.Dense(1)(POINTS), "make it a network with stax.serial"),
        (lambda: list(stax.serial(stax.parallel(stax.Dense(1)), stax.FanInSum())), "put FanOut before"),
        (lambda: list(stax.serial(stax.FanOut(2), stax.Dense(1))), "follows 2 branches"),
        (lambda: list(stax.serial(stax.FanOut(2), stax.FanOut(2))), "FanOut cannot follow branches"),
        (lambda: list(stax.serial(stax.FanOut(2), stax.parallel(stax.Dense(1)))), "1 layers for 2 branches"),
        (lambda: list(stax.serial(stax.FanOut(2))), "end them with FanInSum"),
        (lambda: list(stax.serial(stax.Dense(1), stax.FanOut(2), stax.FanInSum())), "independent branches"),
        (lambda: stax.serial(stax.Dense(1)).kernel_fn(POINTS, None, "cov1"), "not one of nngp, ntk"),
        (lambda: stax.serial(stax.Dense(1)).kernel_fn(("nngp", "ntk")), "stax.serial"),
        (lambda: stax.serial(stax.Dense(1)).kernel_fn(POINTS, None, "ntk", mask_constant=0.0), "mask_constant"),
    ],
)
def test_what_is_refused(make, text):
    with pytest.raises(ConfigError, match=text):
        make()


def test_every_public_name_of_the_peer_is_answered():
    text = (HERE.parent / "docs" / "migrating.md").read_text()
    rows = set(re.findall(r"`(?:stax|predict|nt)\.(\w+)`", text))
    for name in PUBLIC.split():
        assert name in rows, name


# Of neural-tangents 0.6.5: its modules stax and predict, and what is at the top.
PUBLIC = """
ABRelu Abs Aggregate AggregateImplementation AttentionMechanism AvgPool Bool Conv ConvLocal ConvTranspose Cos
Dense Diagonal DotGeneral Dropout Elementwise ElementwiseNumerical Erf Exp ExpNormalized FanInConcat FanInProd
FanInSum FanOut Flatten Gabor Gaussian Gelu GlobalAvgPool GlobalSelfAttention GlobalSumPool Hermite Identity
ImageResize Index LayerNorm LeakyRelu MaskedArray Monomial Padding Polynomial PositionalEmbedding Rbf
RectifiedMonomial Relu Sigmoid_like Sign Sin Slice SumPool layer parallel repeat requires serial
supports_masking unmask_fn gradient_descent_mse gradient_descent gradient_descent_mse_ensemble gp_inference
max_learning_rate ODEState batch empirical_kernel_fn empirical_nngp_fn empirical_ntk_fn empirical_ntk_vp_fn
linearize monte_carlo_kernel_fn taylor_expand Kernel NtkImplementation
"""
