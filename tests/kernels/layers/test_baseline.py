"""Distance kernels, against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.gaussian_process.kernels import RBF, Matern

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.architecture import Architecture

KERNELS = {
    "rbf": ({"kernel": "rbf"}, lambda scale: RBF(scale)),
    "laplace": ({"kernel": "laplace"}, lambda scale: Matern(scale, nu=0.5)),
    **{
        f"matern_{nu}": ({"kernel": "matern", "nu": nu}, lambda scale, nu=nu: Matern(scale, nu=nu))
        for nu in (0.5, 1.5, 2.5)
    },
}


def baseline(name, scale=0.8):
    return Architecture.from_spec([{"op": "flatten"}, {"op": "stationary", "length_scale": scale} | KERNELS[name][0]])


def images(n, dtype="float64", seed=0):
    return np.random.default_rng(seed).standard_normal((n, 3, 3, 2)).astype(dtype)


@pytest.mark.parametrize("name", KERNELS)
def test_agrees_with_scikit_learn(name):
    """Of inputs divided by sqrt(features): r^2 is a mean. r >= 0.5 here, so that rounding enters r^2 by 1e-15 only."""
    x, y = images(8), images(6, seed=1)
    flat = [z.reshape(len(z), -1) / np.sqrt(18) for z in (x, y)]
    made, own = baseline(name)(x, y), baseline(name)(x)
    np.testing.assert_allclose(made.nngp, KERNELS[name][1](0.8)(*flat), rtol=1e-13)
    np.testing.assert_allclose(own.nngp, KERNELS[name][1](0.8)(flat[0]), rtol=1e-13)
    for kernels in (made, own):
        assert (kernels.nngp == kernels.ntk).all()
    assert (np.diag(own.nngp) == 1).all()
    assert (own.nngp == own.nngp.T).all()
    assert (baseline(name).diagonal(x).ntk == 1).all()


@pytest.mark.parametrize("name", KERNELS)
def test_float32_error_near_and_far(name):
    """r^2 of duplicates is off by 2^-24 times some units of p + q = 2; r by its root."""
    x = images(6, "float32")
    y = np.concatenate([x, 1e6 * x[:2]])
    low, high = (baseline(name)(a, b) for a, b in ((x, y), (x.astype(float), y.astype(float))))
    assert np.isfinite(low.nngp).all()
    smooth = name in ("rbf", "matern_1.5", "matern_2.5")
    error = 18 * 2.0**-24 * 4 / 0.8**2
    assert np.abs(low.nngp - high.nngp).max() <= (3 * error if smooth else np.sqrt(2 * error))


def test_what_is_refused():
    flat = {"op": "flatten"}
    for layer, reason in {
        "matern": ({"kernel": "matern"}, "nu is the smoothness"),
        "rbf": ({"kernel": "rbf", "nu": 1.5}, "nu is the smoothness"),
        "nu": ({"kernel": "matern", "nu": 2.0}, "not one of 0.5, 1.5, 2.5"),
        "kernel": ({"kernel": "cosine"}, "not one of rbf, laplace, matern"),
        "scale": ({"kernel": "rbf", "length_scale": 0}, "at least"),
    }.values():
        with pytest.raises(ConfigError, match=reason):
            Architecture.from_spec([flat, {"op": "stationary"} | layer])
    with pytest.raises(ConfigError, match="flatten"):
        Architecture.from_spec([{"op": "stationary", "kernel": "rbf"}]).check_input((4, 4, 3))
