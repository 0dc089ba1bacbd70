"""The proven error of the inverse sine and cosine, on dense grids."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from ntkpipe.kernels.layers.nonlinear.arcsine import angle_and_sine, arcsin


def grid(dtype):
    """Evenly spaced, and geometrically towards 0 and both ends."""
    small = np.geomspace(1e-16, 0.5, 100_000)
    return np.unique(np.concatenate([np.linspace(-1, 1, 400_001), 1 - small, small - 1, small, -small]).astype(dtype))


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 2 * np.spacing(np.pi)), ("float32", 6e-7)])
def test_angle_and_sine(dtype, bound):
    c = grid(dtype)
    with jax.enable_x64(dtype == "float64"):
        angle, sine = (np.asarray(v) for v in jax.jit(angle_and_sine)(c))
    exact = c.astype(np.longdouble)
    assert angle.dtype == dtype
    assert np.abs(angle - np.arccos(exact)).max() <= bound
    assert np.abs(sine - np.sqrt((1 - exact) * (1 + exact))).max() <= 2 * np.finfo(dtype).eps
    assert angle[c == 1] == 0
    assert sine[c == 1] == 0
    assert sine[c == -1] == 0
    near = c > 0.5  # relative accuracy where the angle is small: the argument of the square root is exact
    relative = np.abs(angle[near] - np.arccos(exact[near]))[:-1] / np.arccos(exact[near])[:-1]
    assert relative.max() <= (4 * np.finfo(np.float64).eps if dtype == "float64" else 4e-7)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_arcsin_is_accurate_to_the_last_places(dtype):
    x = grid(dtype)
    with jax.enable_x64(dtype == "float64"):
        made = np.asarray(jax.jit(lambda x: arcsin(x, (1 - x) * (1 + x)))(x))
    exact = np.arcsin(x.astype(np.longdouble))
    nonzero = x != 0
    places = 3
    assert (np.abs(made - exact)[nonzero] <= places * np.finfo(dtype).eps * np.abs(exact)[nonzero]).all()


def test_abramowitz_stegun_in_exact_arithmetic():
    """The stated bound of 4.4.46, evaluated in float64 so that no rounding is in the way."""
    from ntkpipe.kernels.layers.nonlinear.arcsine import _AS_4_4_46

    x = np.linspace(0, 1, 2_000_001)
    polynomial = np.polynomial.polynomial.polyval(x, _AS_4_4_46)
    assert np.abs(np.sqrt(1 - x) * polynomial - np.arccos(x)).max() <= 2.2e-8
