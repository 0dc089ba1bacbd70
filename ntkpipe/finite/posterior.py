"""The posterior of a finite network's weights, by exact readouts (arXiv:2206.07673).

Prior: all weights as at initialisation. Observed: `y = f(x) + noise` of variance s^2. Given the hidden weights the outputs are those of
Bayesian linear regression on the readout's inputs F (n, q): the readout is drawn exactly, and what is left of the posterior is

    p(hidden | y) = p(hidden) N(y; 0, F F^T + s^2) / Z,

so that hidden weights drawn from the prior have the marginal likelihood of the *empirical NNGP* as importance weight. It varies the less
the wider the network is, and the more the more points and outputs there are: where n points times c outputs exceed about a quarter of
the width few samples carry all of it. There chains of preconditioned Crank-Nicolson steps (pCN) go on: `z' = sqrt(1 - b^2) z + b N(0, I)`
leaves the prior as it is, and is accepted by the ratio of these weights.
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
from ntkpipe.finite.network import Network, Spec, as_inputs, network
from ntkpipe.kernels.accelerator import precision_context

# Of an acceptance rate: steps are lengthened above it and shortened below.
_ACCEPTED = 0.3
_FIRST_STEP, _LEAST_STEP = 0.3, 1e-3


class Evaluated(NamedTuple):
    """Of one network with given hidden weights.

    Args:
        log_weight: log of the marginal likelihood of its readout's inputs.
        mean: (p, c) of the outputs of test points over readouts.
        variance: (p,) of them, the same for each output.
        draw: (p, c) outputs with a readout that was drawn.
    """

    log_weight: float
    mean: np.ndarray
    variance: np.ndarray
    draw: np.ndarray


@dataclass(frozen=True)
class Chain:
    """Where a chain stands.

    Args:
        state: (P,) hidden weights in units of their prior deviations.
        step: length b of a step, at most 1.
    """

    state: np.ndarray
    step: float = _FIRST_STEP


class WeightPosterior:
    """Hidden weights and readouts of one architecture, given training data; float64 throughout.

    Args:
        spec: list of layers that ends with a dense readout, at the width of the network.
        x: `(n, height, width, channels)` or `(n, features)`, training points.
        y: `(n, c)` targets, less whatever they are centred by.
        x_test: `(p, ...)`, where outputs are wanted.
        noise: variance s^2 of the targets about the outputs.

    Raises:
        ConfigError: for a network without a dense readout or with other outputs, for dropout, or a noise that is not positive.
        DataError: if an array has another shape, or is not finite.
    """

    def __init__(self, spec: Spec, x: Any, y: Any, x_test: Any, noise: float) -> None:
        if not (math.isfinite(noise) and noise > 0):
            raise ConfigError(f"a noise of {noise} is no variance: set sample.noise above 0")
        self.x, self.x_test = (
            as_inputs(name, np.asarray(a, np.float64), None) for name, a in (("x", x), ("x_test", x_test))
        )
        self.y = np.asarray(y, np.float64)
        made = self._network = network(spec, self.x.shape[1:])
        if not made.has_readout:
            raise ConfigError('readouts are drawn exactly: end the network with {"op": "dense"}')
        if made.masks:
            raise ConfigError("dropout with a rate below 1 draws random masks: take rate=1")
        if self.y.shape != (len(self.x), made.outputs):
            raise DataError(
                f"targets have shape {self.y.shape}, and {len(self.x)} points of a network with {made.outputs} outputs "
                f"({len(self.x)}, {made.outputs})"
            )
        if self.x_test.shape[1:] != self.x.shape[1:]:
            raise DataError(f"training and test points differ in shape: {self.x.shape[1:]} and {self.x_test.shape[1:]}")
        if not all(np.isfinite(a).all() for a in (self.x, self.y, self.x_test)):
            raise DataError("points or targets are not finite: clean them first")
        self.noise = float(noise)

    @property
    def parameters(self) -> int:
        """Hidden weights and biases: those before the readout."""
        return sum(m.parameters for m in self._network.maps[:-1])

    @property
    def features(self) -> int:
        """q, inputs of the readout, its bias included."""
        readout = self._network.maps[-1]
        return readout.shape[0] + (readout.b_std is not None)

    def prior_draw(self, seed: int | Sequence[int]) -> np.ndarray:
        """(P,) hidden weights in units of their prior deviations."""
        return np.random.default_rng(seed).standard_normal(self.parameters)

    def evaluate(self, state: np.ndarray, seed: int | Sequence[int]) -> Evaluated:
        """The importance weight of hidden weights, and what the network then predicts.

        Args:
            state: (P,), see `prior_draw`.
            seed: of the readout.
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
        """Steps of a chain.

        Args:
            chain: where it stands.
            steps: how many.
            keep_every: of so many steps one is kept; 0 keeps none.
            seed: equal seeds give equal steps.

        Returns:
            Where it stands then, what was kept, and the share of steps that were accepted.
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
        """With a step for which about three in ten are accepted; while it warms up alone."""
        return Chain(chain.state, float(np.clip(chain.step * math.exp(accepted - _ACCEPTED), _LEAST_STEP, 1.0)))

    def weights(self, state: np.ndarray) -> list[tuple[Any, Any]]:
        """Hidden weights as `finite.apply` takes them, with a readout of zeros."""
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
            # A prior draw moved onto the data (Matheron's rule).
            drawn = v + f.T @ solve(y - f @ v - math.sqrt(noise) * scatter)
            return log_weight, cross @ alpha, variance, g @ drawn

        return jax.jit(evaluate)


def _factor(f: Any, noise: float) -> tuple[Callable[[Any], Any], Any]:
    """`r -> (F F^T + s^2)^-1 r` and the log of its determinant, by the smaller Cholesky factor."""
    n, q = f.shape
    if n <= q:
        whole = jnp.linalg.cholesky(f @ f.T + noise * jnp.eye(n))
        return lambda r: jax.scipy.linalg.cho_solve((whole, True), r), 2 * jnp.sum(jnp.log(jnp.diagonal(whole)))
    inner = jnp.linalg.cholesky(f.T @ f + noise * jnp.eye(q))

    def solve(r: Any) -> Any:
        return (r - f @ jax.scipy.linalg.cho_solve((inner, True), f.T @ r)) / noise

    return solve, 2 * jnp.sum(jnp.log(jnp.diagonal(inner))) + (n - q) * math.log(noise)


def _weights(made: Network, state: Any) -> list[tuple[Any, Any]]:
    """Weights from standard normal numbers, the readout zero."""
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
    """Samples of the posterior, weighted or along chains.

    Args:
        method: `importance` (drawn from the prior, weighted) or `pcn`.
        log_weights: (m,) log marginal likelihoods; of `pcn` where the chains went.
        means: (m, p, c) of test points given each sample's hidden weights.
        variances: (m, p).
        draws: (m, p, c) outputs of each sampled network.
        chains: of `pcn`, samples come in so many chains of equal length, one after another.
        acceptance: (chains,) share of accepted steps.
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
        """(m,) that sum to one."""
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
        """(p, c) posterior variance of the outputs: over readouts, and over hidden weights."""
        inside = np.einsum("m,mp->p", self.weights, self.variances)
        return inside[:, None] + np.einsum("m,mpc->pc", self.weights, (self.means - self.mean) ** 2)

    @property
    def mean_error(self) -> np.ndarray:
        """(p, c) standard error of `mean` from the number of samples."""
        spread = np.einsum("m,mpc->pc", self.weights, (self.means - self.mean) ** 2)
        return np.sqrt(spread / max(self.effective_size, 1.0))

    @property
    def effective_size(self) -> float:
        """Independent samples that these are worth: by the weights, or of chains by the autocorrelation of the log weights."""
        if self.method == "importance":
            return float(1.0 / np.sum(self.weights**2))
        return effective_size_of_chains(self._of_chains(self.log_weights))

    @property
    def r_hat(self) -> float | None:
        """Split R-hat (arXiv:1903.08008, before ranks) of the log weights, or of an output if that is larger; None of weighted samples."""
        if self.method == "importance":
            return None
        outputs = self.means.reshape(len(self.means), -1)
        seen = [self.log_weights, *outputs[:, :: max(1, outputs.shape[1] // 32)].T]
        return max(split_r_hat(self._of_chains(one)) for one in seen)

    @property
    def divergence(self) -> float | None:
        """Kullback-Leibler divergence of the hidden weights' posterior from their prior, in nats; None of chains, which do not see Z.

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
    """Of chains cut in halves: root of the variance over all by that within; 1 where they agree.

    Args:
        values: (chains, m).
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
    """Samples as arrays; of chains one after another."""
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
