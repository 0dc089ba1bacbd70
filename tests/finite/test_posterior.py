"""The posterior of finite networks' weights: exact where it is known, and by two ways that agree."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from ntkpipe import finite
from ntkpipe.errors import ConfigError, DataError
from ntkpipe.finite.posterior import Chain, WeightPosterior, effective_size_of_chains, split_r_hat
from ntkpipe.finite.sampling import sample
from ntkpipe.gram.worker import compute_tile

LINEAR = [{"op": "dense", "features": 2, "w_std": 1.3, "b_std": 0.4}]
NETWORK = [
    {"op": "dense", "features": 12, "w_std": 1.5, "b_std": 0.3},
    {"op": "erf"},
    {"op": "dense", "features": 1, "w_std": 1.2, "b_std": 0.2},
]


def points(n=6, p=4, c=1, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n + p, 3))
    y = np.stack([np.sin(2 * x[:, 0] + k) for k in range(c)], axis=1)
    return x[:n], y[:n], x[n:]


def infinite(spec, x, y, z, noise):
    kernel, cross = (
        compute_tile(spec, a, b, diagonal=b is None, dtype="float64", out_dtype="float64")["nngp"]
        for a, b in ((x, None), (z, x))
    )
    own = np.diagonal(compute_tile(spec, z, None, diagonal=True, dtype="float64", out_dtype="float64")["nngp"])
    weights = np.linalg.solve(kernel + noise * np.eye(len(x)), cross.T).T
    return weights @ y, own - np.einsum("ij,ij->i", weights, cross)


def test_without_hidden_layers_it_is_bayesian_linear_regression():
    """The finite network is the infinite one: every sample has the same weight, and the exact mean and variance."""
    x, y, z = points(c=2)
    found = sample(LINEAR, x, y, z, noise=0.2, count=400)
    mean, variance = infinite(LINEAR, x, y, z, 0.2)
    assert found.effective_size == pytest.approx(400)
    assert found.divergence == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_allclose(found.mean, mean, atol=1e-12)
    np.testing.assert_allclose(found.variance, variance[:, None] * np.ones((1, 2)), atol=1e-12)
    # Drawn readouts have these moments too, to four standard errors.
    assert (np.abs(found.draws.mean(axis=0) - mean) < 4 * np.sqrt(variance / 400)[:, None]).all()
    np.testing.assert_allclose(found.draws.var(axis=0), np.stack([variance] * 2, axis=1), rtol=4 * math.sqrt(2 / 400))


@pytest.mark.parametrize("n", [5, 20])
def test_the_weight_is_the_marginal_likelihood_of_the_networks_own_nngp(n):
    """By the n x n factor, and by that of the readout's thirteen inputs."""
    x, y, z = points(n)
    posterior = WeightPosterior(NETWORK, x, y, z, noise=0.3)
    state = posterior.prior_draw(3)
    found = posterior.evaluate(state, 0)
    kernel = np.asarray(finite.empirical_kernel(NETWORK, posterior.weights(state), x).nngp)
    cross = np.asarray(finite.empirical_kernel(NETWORK, posterior.weights(state), z, x).nngp)
    noisy = kernel + 0.3 * np.eye(n)
    assert found.log_weight == pytest.approx(multivariate_normal(np.zeros(n), noisy).logpdf(y[:, 0]), rel=1e-10)
    np.testing.assert_allclose(found.mean, cross @ np.linalg.solve(noisy, y), atol=1e-10)


def test_chains_and_weights_agree():
    x, y, z = points()
    weighted = sample(NETWORK, x, y, z, noise=0.1, count=3000, method="importance")
    chains = sample(NETWORK, x, y, z, noise=0.1, count=1200, method="pcn", warmup=200)
    assert weighted.effective_size > 300
    assert chains.effective_size > 100
    assert chains.r_hat is not None
    assert chains.r_hat < 1.1
    assert 0.1 < np.mean(chains.acceptance) < 0.9
    error = np.hypot(weighted.mean_error, chains.mean_error)
    assert (np.abs(weighted.mean - chains.mean) < 4 * error + 1e-9).all()
    np.testing.assert_allclose(weighted.variance, chains.variance, rtol=0.25)
    spread = np.sqrt(weighted.variance / min(weighted.effective_size, chains.effective_size))
    assert (np.abs(chains.draws.mean(axis=0) - weighted.mean) < 5 * spread).all()
    assert chains.divergence is None
    assert weighted.divergence is not None
    assert weighted.divergence > 0


def test_wide_networks_come_to_the_infinite_posterior_and_to_their_prior():
    x, y, z = points(8)
    mean, variance = infinite(NETWORK, x, y, z, 0.1)
    off, kl, sizes = [], [], []
    for width in (8, 64, 512):
        spec = [NETWORK[0] | {"features": width}, *NETWORK[1:]]
        found = sample(spec, x, y, z, noise=0.1, count=300, method="importance")
        off.append(float(np.abs(found.mean - mean).max()))
        kl.append(found.divergence)
        sizes.append(found.effective_size / 300)
    assert kl[0] > kl[1] > kl[2] > 0
    assert kl[2] < 0.1
    assert sizes[2] > 0.8
    assert sizes[0] < sizes[1] < sizes[2]
    assert off[2] < 4 * math.sqrt(float(variance.max()) / 300) + 0.05


def test_seeds_and_the_choice_of_the_method():
    x, y, z = points()
    first, again = (sample(NETWORK, x, y, z, noise=0.1, count=60, seed=4) for _ in range(2))
    np.testing.assert_array_equal(first.draws, again.draws)
    assert first.method == "importance"
    assert np.abs(sample(NETWORK, x, y, z, noise=0.1, count=60, seed=5).draws - first.draws).max() > 0.1
    many = points(40)
    assert (
        sample([NETWORK[0] | {"features": 4}, *NETWORK[1:]], *many, noise=1e-3, count=8, warmup=4, thin=1).method
        == "pcn"
    )


def test_measures_of_chains():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((4, 1000))
    assert effective_size_of_chains(noise) > 3000
    assert split_r_hat(noise) == pytest.approx(1.0, abs=0.01)
    slow = np.zeros((4, 1000))
    for k in range(1, 1000):  # autocorrelation time (1 + 0.9) / (1 - 0.9) = 19
        slow[:, k] = 0.9 * slow[:, k - 1] + rng.standard_normal(4)
    assert 4000 / 19 / 2 < effective_size_of_chains(slow) < 4000 / 19 * 2
    assert split_r_hat(noise + np.arange(4)[:, None]) > 1.5
    assert split_r_hat(noise[:, :3]) == math.inf


def test_a_chain_leaves_the_prior_as_it_is_where_data_say_nothing():
    x, y, z = points(2)
    posterior = WeightPosterior(NETWORK, x, np.zeros_like(y), z, noise=1e6)
    chain, _, accepted = posterior.walk(Chain(posterior.prior_draw(0), 0.8), 200, 0, (0, 1))
    assert accepted > 0.99
    assert np.linalg.norm(chain.state) ** 2 / posterior.parameters == pytest.approx(1.0, abs=0.6)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"noise": 0.0}, ConfigError, "sample.noise above 0"),
        ({"spec": NETWORK[:2]}, ConfigError, "end the network with"),
        ({"spec": [*NETWORK[:2], {"op": "dropout", "rate": 0.5}, NETWORK[2]]}, ConfigError, "dropout"),
        ({"y": np.zeros((6, 2))}, DataError, "targets have shape"),
        ({"x_test": np.zeros((4, 2))}, DataError, "have different shapes"),
        ({"y": np.full((6, 1), np.nan)}, DataError, "not finite"),
        ({"method": "gibbs"}, ConfigError, "is not one of"),
        ({"count": 1}, ConfigError, "sample.count=1 must be at least 4"),
    ],
)
def test_what_is_refused(change, error, text):
    x, y, z = points()
    given = {"spec": NETWORK, "x": x, "y": y, "x_test": z, "noise": 0.1} | change
    with pytest.raises(error, match=text):
        sample(**given)
