"""Samples of a finite network's weight posterior, in pieces that can be made anywhere and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ntkpipe.errors import ConfigError
from ntkpipe.finite.network import Spec
from ntkpipe.finite.posterior import Chain, Evaluated, WeightPosterior, WeightSamples, collected

METHODS = ("auto", "importance", "pcn")
# Of the first samples: where fewer than this share count, weights die and chains are made.
_LEAST_SHARE = 0.1
# Of a seed: what is drawn.
_PRIOR, _READOUT, _START, _STEPS = range(4)


@dataclass(frozen=True)
class SampleSettings:
    """How many samples, and how they are made.

    Args:
        count: samples.
        method: `importance`, `pcn`, or `auto`: by the weights of the first piece.
        chains: of `pcn`.
        warmup: steps of each chain before samples are kept, in which the step is adapted.
        thin: steps per sample that is kept.
        piece: samples, or steps of a warm-up, that are made together and kept as one.
        seed: of everything.

    Raises:
        ConfigError: naming the setting.
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
        """Samples of each chain."""
        return max(2, -(-self.count // self.chains))


@dataclass(frozen=True, eq=False)
class Piece:
    """Work that can be done anywhere: samples from the prior, or steps of one chain.

    Args:
        name: of it; equal settings have equal pieces.
        start: of samples from the prior, the first.
        count: samples, or steps.
        keep_every: of steps, see `WeightPosterior.walk`.
        chain: where a chain stands; None of samples from the prior.
        seed: of the piece.
    """

    name: str
    start: int
    count: int
    seed: tuple[int, ...]
    keep_every: int = 0
    chain: Chain | None = None


@dataclass(frozen=True, eq=False)
class Done:
    """What became of a piece.

    Args:
        kept: samples.
        chain: where the chain stands then.
        accepted: share of its steps.
    """

    kept: Sequence[Evaluated]
    chain: Chain | None = None
    accepted: float = 1.0


Run = Callable[[Sequence[Piece]], Sequence[Done]]
"""Does pieces that do not wait for each other, here or elsewhere, or finds them done; in their order."""


def work(posterior: WeightPosterior, piece: Piece) -> Done:
    """Do a piece."""
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
    """Samples by pieces.

    Args:
        posterior: of the weights.
        settings: of the samples.
        run: does pieces.
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
    """Networks from the posterior of a finite network's weights, and what they predict (arXiv:2206.07673).

    Hidden weights come from the prior, readouts are exact, and the marginal likelihood weighs them; where that leaves few samples,
    by chains (see `finite.posterior`). About n c = width / 4, of c outputs, is where weights end.

    Args:
        spec: list of layers with their widths, a dense readout last.
        x: `(n, ...)` training points.
        y: `(n, c)` targets.
        x_test: `(p, ...)` points to predict.
        noise: variance of the targets about the outputs.
        count: samples.
        method: `importance`, `pcn` or `auto`.
        chains: of `pcn`.
        warmup: steps of each chain before its samples.
        thin: steps per sample.
        seed: of everything.

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
