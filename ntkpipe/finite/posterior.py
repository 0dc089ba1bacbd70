"""The posterior of a finite network's weights, by exact readouts (arXiv:2206.07673).

The prior of all weights is their initialisation. The observations are `y = f(x) + noise` with noise variance s^2. Given
the hidden weights, the outputs are those of Bayesian linear regression on the inputs F (n, q) of the readout. The
readout is therefore drawn exactly, and the posterior of the hidden weights is

    p(hidden | y) = p(hidden) N(y; 0, F F^T + s^2) / Z,

so hidden weights drawn from the prior have the marginal likelihood of the *empirical NNGP* as importance weight. These
weights vary less for wider networks, and more for more points and outputs: if n points times c outputs exceed about a
quarter of the width, a few samples have all the weight. Chains of preconditioned Crank-Nicolson steps (pCN) are used
then: `z' = sqrt(1 - b^2) z + b N(0, I)` preserves the prior, and is accepted by the ratio of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntkpipe.errors import ConfigError, DataError
from ntkpipe.finite.network import Network, as_inputs, network
from ntkpipe.kernels.accelerator import precision_context
from ntkpipe.kernels.spec import Spec

# Target acceptance rate: steps are lengthened above it and shortened below it.
_ACCEPTED = 0.3
_FIRST_STEP, _LEAST_STEP = 0.3, 1e-3


class Evaluated(NamedTuple):
    """The predictions of one network with given hidden weights.

    Args:
        log_weight: log marginal likelihood of the hidden weights.
        mean: (p, c) mean over readouts of the outputs on the test points.
        variance: (p,) variance over readouts, equal for all outputs.
        draw: (p, c) outputs with one drawn readout.
    """

    log_weight: float
    mean: np.ndarray
    variance: np.ndarray
    draw: np.ndarray


@dataclass(frozen=True)
class Chain:
    """The state of a chain.

    Args:
        state: (P,) hidden weights in units of their prior deviations.
        step: length b of a step, at most 1.
    """

    state: np.ndarray
    step: float = _FIRST_STEP


class WeightPosterior:
    """The posterior of the hidden weights and the readout of one network, given training data. All computation is in
    float64.

    Args:
        spec: list of layers with their widths, which ends with a dense readout.
        x: training points, `(n, height, width, channels)` or `(n, features)`.
        y: targets `(n, c)`, already centred if they are to be.
        x_test: test points, `(p, ...)`.
        noise: variance s^2 of the targets given the outputs.

    Raises:
        ConfigError: if the network has no dense readout, another number of outputs, or dropout, or the noise is not
            above 0.
        DataError: if an array has the wrong shape or is not finite.
    """

    def __init__(self, spec: Spec, x: Any, y: Any, x_test: Any, noise: float) -> None:
        if not (math.isfinite(noise) and noise > 0):
            raise ConfigError(f"noise={noise} is not a variance: set sample.noise above 0")
        self.x, self.x_test = (
            as_inputs(name, np.asarray(a, np.float64), None) for name, a in (("x", x), ("x_test", x_test))
        )
        self.y = np.asarray(y, np.float64)
        made = self._network = network(spec, self.x.shape[1:])
        if not made.has_readout:
            raise ConfigError('readouts are drawn exactly: end the network with {"op": "dense"}')
        if made.masks:
            raise ConfigError("dropout with a rate below 1 draws random masks: set rate=1")
        if self.y.shape != (len(self.x), made.outputs):
            raise DataError(
                f"targets have shape {self.y.shape}, and {len(self.x)} points of a network with {made.outputs} outputs "
                f"({len(self.x)}, {made.outputs})"
            )
        if self.x_test.shape[1:] != self.x.shape[1:]:
            raise DataError(
                f"training and test points have different shapes: {self.x.shape[1:]} and {self.x_test.shape[1:]}"
            )
        if not all(np.isfinite(a).all() for a in (self.x, self.y, self.x_test)):
            raise DataError("points or targets are not finite: clean them first")
        self.noise = float(noise)

    @property
    def parameters(self) -> int:
        """Number of hidden weights and biases, those before the readout."""
        return sum(m.parameters for m in self._network.maps[:-1])

    @property
    def features(self) -> int:
        """q, the number of inputs of the readout, including its bias."""
        readout = self._network.maps[-1]
        return readout.shape[0] + (readout.b_std is not None)

    def prior_draw(self, seed: int | Sequence[int]) -> np.ndarray:
        """Draw (P,) hidden weights from the prior, in units of their prior standard deviations."""
        return np.random.default_rng(seed).standard_normal(self.parameters)

    def evaluate(self, state: np.ndarray, seed: int | Sequence[int]) -> Evaluated:
        """Return the importance weight of hidden weights and the predictions of the network.

        Args:
            state: (P,) hidden weights, see `prior_draw`.
            seed: seed of the drawn readout.
        """
        rng = np.random.default_rng(seed)
        c, n = self._network.outputs, len(self.x)
        readout, scatter = rng.standard_normal((self.features, c)), rng.standard_normal((n, c))
        with precision_context("float64"):
            made = self._evaluate(jnp.asarray(state), jnp.asarray(readout), jnp.asarray(scatter))
            log_weight, mean, variance, draw = map(np.asarray, made)
        return Evaluated(float(log_weight), mean, np.maximum(variance, 0.0), draw)

    def walk(
        self, chain: Chain, steps: int, keep_every: int, seed: Sequence[int]
    ) -> tuple[Chain, list[Evaluated], float]:
        """Advance a chain.

        Args:
            chain: state of the chain.
            steps: number of steps.
            keep_every: keep one sample per this many steps; 0 keeps none.
            seed: equal seeds give equal steps.

        Returns:
            The new state, the samples that were kept, and the fraction of accepted steps.
        """
        rng = np.random.default_rng(seed)
        state, here = chain.state, self.evaluate(chain.state, (*seed, 0))
        kept, accepted = [], 0
        for k in range(1, steps + 1):
            proposed = math.sqrt(1.0 - chain.step**2) * state + chain.step * rng.standard_normal(len(state))
            there = self.evaluate(proposed, (*seed, k))
            if math.log(max(rng.random(), np.finfo(np.float64).tiny)) < there.log_weight - here.log_weight:
                state, here, accepted = proposed, there, accepted + 1
            elif keep_every and k % keep_every == 0:
                here = self.evaluate(state, (*seed, k))  # another readout of the same hidden weights
            if keep_every and k % keep_every == 0:
                kept.append(here)
        return Chain(state, chain.step), kept, accepted / steps

    def adapted(self, chain: Chain, accepted: float) -> Chain:
        """Return the chain with its step length adapted to an acceptance rate of about 0.3. Use it during warm-up
        only.
        """
        return Chain(chain.state, float(np.clip(chain.step * math.exp(accepted - _ACCEPTED), _LEAST_STEP, 1.0)))

    def weights(self, state: np.ndarray) -> list[tuple[Any, Any]]:
        """Return hidden weights in the form that `finite.apply` expects, with a readout of zeros."""
        with precision_context("float64"):
            made = _weights(self._network, jnp.asarray(state))
            return [(jax.tree.map(np.asarray, w), None if b is None else np.asarray(b)) for w, b in made]

    @cached_property
    def _evaluate(self) -> Callable[..., Any]:
        made, noise = self._network, self.noise
        readout = made.maps[-1]
        deviation, of_bias = readout.deviations
        factor, bias = deviation * readout.scale, of_bias * readout.bias_scale

        def inputs(weights: Any, x: Any) -> Any:
            h = factor * made.forward(weights, x)[1][-1]
            return h if readout.b_std is None else jnp.concatenate([h, jnp.full((len(h), 1), bias)], axis=1)

        def evaluate(state: Any, v: Any, scatter: Any) -> Any:
            weights = _weights(made, state)
            y = jnp.asarray(self.y)
            f, g = inputs(weights, jnp.asarray(self.x)), inputs(weights, jnp.asarray(self.x_test))
            solve, logdet = _factor(f, noise)
            n, c = y.shape
            alpha = solve(y)
            log_weight = -0.5 * (jnp.sum(y * alpha) + c * logdet + n * c * math.log(2 * math.pi))
            cross = g @ f.T
            variance = jnp.sum(g**2, axis=1) - jnp.sum(cross * solve(cross.T).T, axis=1)
            # A prior draw, corrected to fit the data (Matheron's rule).
            drawn = v + f.T @ solve(y - f @ v - math.sqrt(noise) * scatter)
            return log_weight, cross @ alpha, variance, g @ drawn

        return jax.jit(evaluate)


def _factor(f: Any, noise: float) -> tuple[Callable[[Any], Any], Any]:
    """Return `r -> (F F^T + s^2)^-1 r` and the log determinant of `F F^T + s^2`, by the smaller Cholesky factor."""
    n, q = f.shape
    if n <= q:
        whole = jnp.linalg.cholesky(f @ f.T + noise * jnp.eye(n))
        return lambda r: jax.scipy.linalg.cho_solve((whole, True), r), 2 * jnp.sum(jnp.log(jnp.diagonal(whole)))
    inner = jnp.linalg.cholesky(f.T @ f + noise * jnp.eye(q))

    def solve(r: Any) -> Any:
        return (r - f @ jax.scipy.linalg.cho_solve((inner, True), f.T @ r)) / noise

    return solve, 2 * jnp.sum(jnp.log(jnp.diagonal(inner))) + (n - q) * math.log(noise)


def _weights(made: Network, state: Any) -> list[tuple[Any, Any]]:
    """Return weights from standard normal numbers, with a readout of zeros."""
    entries: list[list[Any]] = []
    biases: list[Any] = []
    start = 0

    def take(shape: tuple[int, ...], deviation: float) -> Any:
        nonlocal start
        size = math.prod(shape)
        start += size
        return deviation * state[start - size : start].reshape(shape)

    for one in made.maps:
        last = one is made.maps[-1]
        deviation, of_bias = one.deviations
        if one.entry == len(entries):
            entries.append([])
            biases.append(None)
        shape, offset = one.shapes
        entries[-1].append(jnp.zeros(shape) if last else take(shape, deviation))
        if offset is not None:
            biases[-1] = jnp.zeros(offset) if last else take(offset, of_bias)
    return [(w[0] if len(w) == 1 else tuple(w), b) for w, b in zip(entries, biases, strict=True)]


@dataclass(frozen=True, eq=False)
class WeightSamples:
    """Samples of the posterior: weighted, or from chains.

    Args:
        method: `importance` (drawn from the prior and weighted) or `pcn` (chains).
        log_weights: (m,) log marginal likelihoods of the samples.
        means: (m, p, c) means of the outputs on the test points, given each sample's hidden weights.
        variances: (m, p) variances of the same outputs.
        draws: (m, p, c) outputs of each sampled network.
        chains: number of chains of equal length; samples of one chain are consecutive.
        acceptance: (chains,) fractions of accepted steps.
    """

    method: str
    log_weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray
    draws: np.ndarray
    chains: int = 1
    acceptance: tuple[float, ...] = ()

    @property
    def weights(self) -> np.ndarray:
        """(m,) weights of the samples, with sum 1."""
        if self.method == "pcn":
            return np.full(len(self.log_weights), 1.0 / len(self.log_weights))
        made = np.exp(self.log_weights - self.log_weights.max())
        return made / made.sum()

    @property
    def mean(self) -> np.ndarray:
        """(p, c) posterior mean of the outputs."""
        return np.einsum("m,mpc->pc", self.weights, self.means)

    @property
    def variance(self) -> np.ndarray:
        """(p, c) posterior variance of the outputs over readouts and hidden weights."""
        inside = np.einsum("m,mp->p", self.weights, self.variances)
        return inside[:, None] + np.einsum("m,mpc->pc", self.weights, (self.means - self.mean) ** 2)

    @property
    def mean_error(self) -> np.ndarray:
        """(p, c) standard error of `mean` due to the finite number of samples."""
        spread = np.einsum("m,mpc->pc", self.weights, (self.means - self.mean) ** 2)
        return np.sqrt(spread / max(self.effective_size, 1.0))

    @property
    def effective_size(self) -> float:
        """Effective number of independent samples: from the weights, or from the autocorrelation of chains' log
        weights.
        """
        if self.method == "importance":
            return float(1.0 / np.sum(self.weights**2))
        return effective_size_of_chains(self._of_chains(self.log_weights))

    @property
    def r_hat(self) -> float | None:
        """Largest split R-hat of the log weights and the outputs (arXiv:1903.08008, without ranks); None for
        `importance`.
        """
        if self.method == "importance":
            return None
        outputs = self.means.reshape(len(self.means), -1)
        seen = [self.log_weights, *outputs[:, :: max(1, outputs.shape[1] // 32)].T]
        return max(split_r_hat(self._of_chains(one)) for one in seen)

    @property
    def divergence(self) -> float | None:
        """Kullback-Leibler divergence of the hidden weights' posterior from their prior, in nats; None of chains,
        which do not see Z.

        It cannot exceed the logarithm of the number of samples: with few effective ones it is a lower bound.
        """
        if self.method == "pcn":
            return None
        top = self.log_weights.max()
        log_z = top + math.log(np.mean(np.exp(self.log_weights - top)))
        return float(np.sum(self.weights * self.log_weights) - log_z)

    def _of_chains(self, values: np.ndarray) -> np.ndarray:
        return values.reshape(self.chains, -1)


def effective_size_of_chains(values: np.ndarray) -> float:
    """Samples over the autocorrelation time, by Geyer's initial positive pairs.

    Args:
        values: (chains, m).
    """
    chains, m = values.shape
    centred = values - values.mean(axis=1, keepdims=True)
    variance = float(np.mean(centred**2)) + float(np.var(values.mean(axis=1)))
    if variance == 0 or m < 4:
        return float(chains * m)
    size = 1 << (2 * m - 1).bit_length()
    spectrum = np.abs(np.fft.rfft(centred, size, axis=1)) ** 2
    covariance = np.fft.irfft(spectrum, size, axis=1)[:, :m].mean(axis=0) / m
    correlation = 1.0 - (float(np.mean(centred**2)) - covariance) / variance
    time = -1.0
    for k in range(0, m - 1, 2):
        pair = correlation[k] + correlation[k + 1]
        if pair <= 0:
            break
        time += 2.0 * pair
    return float(min(chains * m, chains * m / max(time, 1e-12)))


def split_r_hat(values: np.ndarray) -> float:
    """Return the split R-hat of chains: the root of the total variance over the variance within half chains.

    It is 1 if the chains agree.

    Args:
        values: values of each chain, `(chains, m)`.
    """
    half = values.shape[1] // 2
    if half < 2:
        return math.inf
    parts = np.concatenate([values[:, :half], values[:, -half:]])
    within = float(parts.var(axis=1, ddof=1).mean())
    between = float(parts.mean(axis=1).var(ddof=1))
    return math.sqrt((half - 1) / half + between / within) if within > 0 else (1.0 if between == 0 else math.inf)


def collected(
    method: str, kept: Sequence[Evaluated], *, chains: int = 1, acceptance: Sequence[float] = ()
) -> WeightSamples:
    """Return the samples as arrays, with the chains one after another."""
    columns: Mapping[str, np.ndarray] = {
        name: np.array([getattr(one, name) for one in kept]) for name in Evaluated._fields
    }
    return WeightSamples(
        method,
        columns["log_weight"],
        columns["mean"],
        columns["variance"],
        columns["draw"],
        chains=chains,
        acceptance=tuple(acceptance),
    )
