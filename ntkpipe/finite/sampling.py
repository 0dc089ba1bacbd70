"""Samples of a finite network's weight posterior, in pieces that any process can compute and store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ntkpipe.errors import ConfigError
from ntkpipe.finite.posterior import Chain, Evaluated, WeightPosterior, WeightSamples, collected
from ntkpipe.kernels.spec import Spec

METHODS = ("auto", "importance", "pcn")
# If the effective share of the first samples is below this, importance weights have collapsed and chains are used.
_LEAST_SHARE = 0.1
# Of a seed: what is drawn.
_PRIOR, _READOUT, _START, _STEPS = range(4)


@dataclass(frozen=True)
class SampleSettings:
    """The number of samples and the method.

    Args:
        count: number of samples.
        method: `importance`, `pcn`, or `auto`, which decides by the weights of the first piece.
        chains: number of chains of `pcn`.
        warmup: steps of each chain before samples are kept, during which the step length is adapted.
        thin: steps per kept sample.
        piece: number of samples, or of warm-up steps, that are computed and stored together.
        seed: seed of all random numbers.

    Raises:
        ConfigError: if a setting is out of range; the message names it.
    """

    count: int = 1000
    method: str = "auto"
    chains: int = 4
    warmup: int = 500
    thin: int = 5
    piece: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"sample.method={self.method} is not one of {', '.join(METHODS)}")
        for name, least in (("count", 4), ("chains", 1), ("warmup", 0), ("thin", 1), ("piece", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"sample.{name}={getattr(self, name)} must be at least {least}")

    @property
    def of_chain(self) -> int:
        """Number of samples of each chain."""
        return max(2, -(-self.count // self.chains))


@dataclass(frozen=True, eq=False)
class Piece:
    """A unit of work: samples from the prior, or steps of one chain.

    Args:
        name: name of the piece; equal settings give equal pieces.
        start: index of the first sample, for samples from the prior.
        count: number of samples or steps.
        keep_every: see `WeightPosterior.walk`.
        chain: state of the chain; None for samples from the prior.
        seed: seed of the piece.
    """

    name: str
    start: int
    count: int
    seed: tuple[int, ...]
    keep_every: int = 0
    chain: Chain | None = None


@dataclass(frozen=True, eq=False)
class Done:
    """The result of a piece.

    Args:
        kept: the samples.
        chain: state of the chain after the piece.
        accepted: fraction of accepted steps.
    """

    kept: Sequence[Evaluated]
    chain: Chain | None = None
    accepted: float = 1.0


Run = Callable[[Sequence[Piece]], Sequence[Done]]
"""Computes or loads independent pieces, and returns their results in the same order."""


def work(posterior: WeightPosterior, piece: Piece) -> Done:
    """Compute one piece."""
    if piece.chain is not None:
        chain, kept, accepted = posterior.walk(piece.chain, piece.count, piece.keep_every, piece.seed)
        return Done(kept, chain, accepted)
    (seed,) = piece.seed
    kept = [
        posterior.evaluate(posterior.prior_draw((seed, _PRIOR, k)), (seed, _READOUT, k))
        for k in range(piece.start, piece.start + piece.count)
    ]
    return Done(kept)


def draw(posterior: WeightPosterior, settings: SampleSettings, run: Run) -> WeightSamples:
    """Draw samples piece by piece.

    Args:
        posterior: posterior of the weights.
        settings: settings of the samples.
        run: computes or loads pieces.
    """
    method = settings.method
    if method == "auto":
        first = collected("importance", run(_from_prior(settings)[:1])[0].kept)
        least = max(2.0, _LEAST_SHARE * len(first.log_weights))
        method = "importance" if first.effective_size >= least else "pcn"
    if method == "importance":
        return collected(method, [one for done in run(_from_prior(settings)) for one in done.kept])
    return _chains(posterior, settings, run)


def _from_prior(settings: SampleSettings) -> list[Piece]:
    starts = range(0, settings.count, settings.piece)
    return [
        Piece(f"importance-{k}", start, min(settings.piece, settings.count - start), (settings.seed,))
        for k, start in enumerate(starts)
    ]


def _chains(posterior: WeightPosterior, settings: SampleSettings, run: Run) -> WeightSamples:
    seed, chains = settings.seed, settings.chains
    stand = [Chain(posterior.prior_draw((seed, _START, k))) for k in range(chains)]
    kept: list[list[Evaluated]] = [[] for _ in range(chains)]
    accepted = [[] for _ in range(chains)]
    warm = _lengths(settings.warmup, settings.piece)
    samples = [settings.thin * one for one in _lengths(settings.of_chain, settings.piece)]
    for k, steps in enumerate([*warm, *samples]):
        warming = k < len(warm)
        pieces = [
            Piece(f"pcn-{c}-{k}", 0, steps, (seed, _STEPS, c, k), 0 if warming else settings.thin, stand[c])
            for c in range(chains)
        ]
        for c, done in enumerate(run(pieces)):
            assert done.chain is not None
            stand[c] = posterior.adapted(done.chain, done.accepted) if warming else done.chain
            kept[c].extend(done.kept)
            if not warming:
                accepted[c].append(done.accepted)
    rates = [sum(rates) / len(rates) for rates in accepted]
    return collected("pcn", [one for of_chain in kept for one in of_chain], chains=chains, acceptance=rates)


def _lengths(total: int, most: int) -> list[int]:
    return [min(most, total - start) for start in range(0, total, most)]


def sample(
    spec: Spec,
    x: Any,
    y: Any,
    x_test: Any,
    *,
    noise: float,
    count: int = 1000,
    method: str = "auto",
    chains: int = 4,
    warmup: int = 500,
    thin: int = 5,
    seed: int = 0,
) -> WeightSamples:
    """Sample networks from the posterior of a finite network's weights, with their predictions (arXiv:2206.07673).

    Hidden weights are drawn from the prior and weighted by their marginal likelihood; readouts are drawn exactly. If
    few samples have all the weight, which happens above about n c = width / 4, chains are used instead (see
    `finite.posterior`).

    Args:
        spec: list of layers with their widths, which ends with a dense readout.
        x: `(n, ...)` training points.
        y: `(n, c)` targets.
        x_test: `(p, ...)` points to predict.
        noise: variance of the targets given the outputs.
        count: number of samples.
        method: `importance`, `pcn` or `auto`.
        chains: number of chains of `pcn`.
        warmup: steps of each chain before its samples.
        thin: steps per sample.
        seed: seed of all random numbers.

    Raises:
        ConfigError, DataError: see `WeightPosterior`.

    Example:
        >>> import numpy as np
        >>> layers = [{"op": "dense", "features": 64}, {"op": "relu"}, {"op": "dense", "features": 1}]
        >>> x = np.linspace(-1, 1, 8)[:, None]
        >>> found = sample(layers, x, np.sin(3 * x), x, noise=0.1, count=20)
        >>> found.mean.shape, found.method
        ((8, 1), 'importance')
    """
    settings = SampleSettings(count, method, chains, warmup, thin, seed=seed)
    posterior = WeightPosterior(spec, x, y, x_test, noise)
    return draw(posterior, settings, lambda pieces: [work(posterior, piece) for piece in pieces])
