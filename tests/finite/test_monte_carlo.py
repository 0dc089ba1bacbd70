"""Kernels estimated from random networks."""

from __future__ import annotations

import numpy as np
import pytest
from layer_kinds import ERF, FLATTEN, dense

from ntkpipe import finite
from ntkpipe.errors import ConfigError
from ntkpipe.finite.monte_carlo import kernels_of_networks
from ntkpipe.kernels.architecture import Architecture

SPEC = [FLATTEN, dense(32), ERF, dense(1)]


def images(n=3):
    return np.random.default_rng(0).standard_normal((n, 2, 2, 1))


def test_means_and_errors_are_those_of_the_draws():
    draws = kernels_of_networks(SPEC, images(), seed=5)
    each = [next(draws) for _ in range(6)]
    made = finite.monte_carlo_kernel(SPEC, 6, images(), seed=5)
    for k, name in enumerate(("nngp", "ntk")):
        values = np.stack([draw[k] for draw in each])
        np.testing.assert_allclose(getattr(made, name), values.mean(axis=0), rtol=1e-12)
        error = values.std(axis=0, ddof=1) / np.sqrt(6)
        np.testing.assert_allclose(getattr(made, f"{name}_error"), error, rtol=1e-9)
    again = finite.monte_carlo_kernel(SPEC, 6, images(), seed=5)
    np.testing.assert_array_equal(made.ntk, again.ntk)
    assert np.abs(made.ntk - finite.monte_carlo_kernel(SPEC, 6, images(), seed=6).ntk).max() > 0


def test_wider_networks_are_nearer_the_kernel():
    """Within five standard errors and the bias of order 1 / width, at eight times the spec's width."""
    made = finite.monte_carlo_kernel(SPEC, 48, images(), images(5)[2:], width_factor=8)
    exact = Architecture.from_spec(SPEC)(images(), images(5)[2:])
    for name in ("nngp", "ntk"):
        right = getattr(exact, name)
        allowed = 5 * getattr(made, f"{name}_error") + 5 / 256 * np.abs(right).max()
        assert (np.abs(getattr(made, name) - right) <= allowed).all()


@pytest.mark.parametrize("count", [1, 0, True])
def test_one_network_has_no_error(count):
    with pytest.raises(ConfigError, match="n_networks"):
        finite.monte_carlo_kernel(SPEC, count, images())
