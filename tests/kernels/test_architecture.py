"""Properties that every architecture's kernels have, and what is refused."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkpipe.errors import ConfigError, DataError, ResourceError
from ntkpipe.kernels import architecture
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.evaluation import host
from ntkpipe.kernels.zoo import fcn

ARGUMENTS = {"leaky_relu": {"alpha": 0.2}, "ab_relu": {"a": 0.3, "b": 1.1}}
ACTIVATIONS = ("relu", "leaky_relu", "ab_relu", "erf", "gelu", "sin", "identity")


def network(activation="relu", depth=2, **settings):
    return Architecture.from_spec(
        fcn(depth, activation=activation, activation_args=ARGUMENTS.get(activation), **settings)
    )


def images(n, shape=(4, 4, 3), dtype="float64", seed=0):
    return np.random.default_rng(seed).standard_normal((n, *shape)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_symmetric_and_positive_with_exact_diagonals(activation, dtype):
    arch, x = network(activation), images(40, dtype=dtype)
    made, diagonal = arch(x), arch.diagonal(x)
    for block, expected in zip(made, diagonal, strict=True):
        assert block.dtype == dtype
        assert (np.diag(block) == expected).all()
        assert (block == block.T).all()
        values = np.linalg.eigvalsh(block.astype(np.float64))
        # Weyl: a perturbation of entries by e moves eigenvalues by at most n e.
        assert values.min() >= -40 * 50 * np.finfo(dtype).eps * np.abs(block).max()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_float32_diagonal_at_depth_100(activation):
    """Relative error of a sum of positive terms grows by a few roundings a layer, whatever the angle would be."""
    arch, x = network(activation, depth=100), images(6, dtype="float32")
    low, high = arch(x), arch.diagonal(x.astype(np.float64))
    for block, expected, own in zip(low, high, arch.diagonal(x), strict=True):
        assert (np.diag(block) == own).all()
        np.testing.assert_allclose(own, expected, rtol=100 * 12 * np.finfo(np.float32).eps)


@settings(deadline=None, max_examples=8)
@given(n=st.integers(1, 40), m=st.integers(1, 40), seed=st.integers(0, 99))
def test_a_tile_is_the_block_of_the_whole(n, m, seed):
    """Products of 48 values summed in another order differ by at most 48 eps of the norms."""
    arch, x = network(), images(n + m, seed=seed)
    for part, whole in zip(arch(x[:n], x[n:]), arch(x), strict=True):
        assert part.shape == (n, m)
        assert np.abs(part - whole[:n, n:]).max() <= 100 * 48 * np.finfo(np.float64).eps * np.abs(whole).max()


def test_strips_do_not_change_values(monkeypatch):
    arch, x, y = network(), images(70, dtype="float32"), images(50, dtype="float32", seed=1)
    whole, same = arch(x, y), arch(x)
    monkeypatch.setattr(host, "strip_rows", lambda rows, cols, itemsize: (32, 8))
    for a, b in zip((*whole, *same), (*arch(x, y), *arch(x)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(a).max())


@pytest.mark.parametrize("depth", [1, 3, 10])
def test_float32_error_bound(depth):
    """ReLU in float32 against float64, with u = 2^-24 and errors relative to sqrt(k(x,x) k(x',x')).

    Products of d values: 4 sqrt(d) u with high probability (Higham and Mary 2019). The normalised arc-cosine map has a
    slope of at most 1, so that the NNGP's error grows by the map's own rounding, at most 12 u a layer. The factor of the
    NTK depends on the angle, whose error is that of the cosine divided by its sine: over pi / 2 that enters every layer.
    """
    d, u = 16 * 16 * 3, 2.0**-24
    x = images(60, (16, 16, 3)) + images(1, (16, 16, 3), seed=5)
    arch = network(depth=depth)
    low, high = arch(x.astype(np.float32)), arch(x.astype(np.float32).astype(np.float64))
    off = ~np.eye(len(x), dtype=bool)

    def normalised(block):
        root = np.sqrt(np.diag(block))
        return block / root[:, None] / root[None, :]

    scale = [np.sqrt(np.outer(np.diag(b), np.diag(b))) for b in high]
    nngp_error = np.abs(low.nngp - high.nngp) / scale[0]
    bound = (4 * math.sqrt(d) + 12 * depth + 4) * u
    assert nngp_error.max() <= bound
    sine = np.sqrt(1 - normalised(high.nngp)[off] ** 2)
    ntk_error = np.abs(low.ntk - high.ntk)[off] / scale[1][off]
    assert (ntk_error <= depth * (bound / sine / (math.pi / 2) + 12 * u) + bound).all()
    assert np.median(ntk_error) <= 1e-6


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("b_std", [None, 0.0, 0.1])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_zero_and_duplicated_images(activation, b_std, dtype):
    x = images(6, dtype=dtype)
    x[1] = 0
    x[3] = x[2]
    x[4] = 0
    made = network(activation, b_std=b_std)(x)
    for block in made:
        assert np.isfinite(block).all()
    if activation in ("relu", "leaky_relu", "ab_relu", "identity", "gelu") and b_std is None:
        assert (made.nngp[1] == 0).all()
        assert (made.nngp[:, 4] == 0).all()
        assert block[2, 3] == block[2, 2]
        assert block[1, 4] == block[1, 1]


def test_sign_flip_of_inputs_through_an_odd_function():
    x, y = images(5), images(4, seed=1)
    arch = network("erf", b_std=None)
    for plain, flipped in zip(arch(x, y), arch(-x, y), strict=True):
        # The NTK of an odd function's network is odd as well: the derivative is even.
        np.testing.assert_allclose(flipped, -plain, rtol=1e-12, atol=1e-14)


def test_linear_network_is_the_linear_kernel():
    x, y = images(5, (7,)), images(3, (7,), seed=1)
    made = Architecture.from_spec([{"op": "dense", "features": 3, "w_std": 1.5, "b_std": 0.2}])(x, y)
    np.testing.assert_allclose(made.nngp, 2.25 * x @ y.T / 7 + 0.04, rtol=1e-13, atol=1e-14)
    np.testing.assert_array_equal(made.ntk, made.nngp)
    standard = {"op": "dense", "features": 3, "w_std": 1.5, "b_std": 0.0, "parameterization": "standard"}
    np.testing.assert_allclose(Architecture.from_spec([standard])(x, y).ntk, x @ y.T + 1, rtol=1e-13, atol=1e-14)


def test_without_a_trainable_layer_the_ntk_is_zero():
    made = Architecture.from_spec([{"op": "flatten"}])(images(3))
    assert (made.ntk == 0).all()
    assert (made.nngp != 0).all()


def test_critical_relu_keeps_the_variance():
    x = images(4)
    made = network(depth=50, b_std=None).diagonal(x)
    expected = 2 * (x.reshape(4, -1) ** 2).mean(axis=1)
    np.testing.assert_allclose(made.nngp, expected, rtol=1e-12)
    np.testing.assert_allclose(made.ntk, 51 * expected, rtol=1e-12)


def test_jax_arrays_and_tracing():
    x, y = images(6, dtype="float32"), images(5, dtype="float32", seed=1)
    arch = network()
    expected = (*arch(x, y), *arch(x), *arch.diagonal(x))
    concrete = (*arch(jax.numpy.asarray(x), jax.numpy.asarray(y)), *arch(jax.numpy.asarray(x)))
    assert all(isinstance(block, jax.Array) for block in concrete)
    traced = jax.jit(lambda a, b: (*arch(a, b), *arch(a), *arch.diagonal(a)))(x, y)
    device = (*arch.on_device(x, y), *arch.on_device(x, None))
    for made in (concrete, traced, device):
        for a, b in zip(made, expected, strict=False):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())
    same = np.asarray(device[2])
    assert (same == same.T).all()


def test_float64_leaves_the_global_setting_alone():
    network()(images(3))
    assert jax.numpy.ones(2).dtype == np.float32


def test_a_device_without_float64_is_refused(monkeypatch):
    monkeypatch.setattr(architecture.jax, "default_backend", lambda: "tpu")
    with pytest.raises(ResourceError, match=r"kernel\.dtype=float32"):
        architecture.precision_context("float64")


DENSE = {"op": "dense", "features": 8}


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ([{"op": "flatten"}, {"op": "relu"}], r"layer 1 \(relu\).*Gaussian"),
        ([DENSE, {"op": "relu"}, {"op": "erf"}], r"layer 2 \(erf\).*Gaussian"),
        ([DENSE, {"op": "relu"}, {"op": "layer_norm"}], r"layer 2 \(layer_norm\).*Gaussian"),
        ([{"op": "layer_norm"}], r"layer 0 \(layer_norm\)"),
        ([DENSE, {"op": "identity"}, {"op": "relu"}, {"op": "identity"}, {"op": "gelu"}], r"layer 4 \(gelu\)"),
    ],
)
def test_architectures_without_a_formula_are_refused(layers, text):
    with pytest.raises(ConfigError, match=text):
        Architecture.from_spec(layers)


def test_input_shapes():
    flat = Architecture.from_spec([DENSE])
    flat.check_input((12,))
    with pytest.raises(ConfigError, match=r"layer 0 \(dense\).*flatten"):
        flat.check_input((4, 4, 3))
    network().check_input((4, 4, 3))
    for shape in ((4, 4), (0, 4, 3), ()):
        with pytest.raises(ConfigError, match="shape"):
            network().check_input(shape)


def test_bad_arrays_are_refused():
    arch, x = network(), images(3)
    with pytest.raises(DataError, match="float32 or float64"):
        arch(np.zeros((3, 4, 4, 3), np.uint8))
    with pytest.raises(DataError, match="agree"):
        arch(x, images(3, (4, 4, 1)))
    with pytest.raises(DataError, match="agree"):
        arch(x, x.astype(np.float32))
    with pytest.raises(DataError, match="shape"):
        arch(np.zeros(3))


def test_equal_networks_share_compiled_functions():
    deep, deeper = (set(network(depth=depth)._flat_runs(images(2))) for depth in (30, 60))
    assert deep == deeper
    assert len(deep) == 3
