"""Settings of the finite networks that are compared with the infinite one."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ntkpipe.config.checks import at_least, choice
from ntkpipe.errors import ConfigError


@dataclass(frozen=True)
class FiniteConfig:
    """Finite networks that `ntkpipe validate` trains beside the infinite one. No other command uses these settings.

    Args:
        widths: widths of the narrowest hidden layer. Other layers keep the proportions of the kernel.
        networks: number of random networks of each width.
        linearised: also train each network's linearisation, through its own kernel.
        steps: number of training steps, if `predict.times` gives none.
        trained: `network` trains all layers (the infinite network's NTK); `readout` trains only the last layer (its
            NNGP).
        training: `gradient_descent` on all training points (with momentum if `predict.dynamics=momentum`), or `sgd`,
            which the theorem does not cover.
        batch_size: for `sgd`: training points per step.
        loss: `squared`, or `cross_entropy`, which the theorem does not cover.
        output_scale: alpha of lazy training (arXiv:1812.07956), one or several. 1 is plain training.
        centred: subtract each network's outputs at the start.
        rates: learning rates, in units of one over each network's own curvature at the start. They make a study of
            large rates instead of a comparison with the theory.
        initialiser: distribution of the weights: `gaussian`, `orthogonal` or `delta_orthogonal`.
        seed: seed of the networks.
        between: indices of two training images; the report shows the networks on the line between them. By default
            the first image and the next one of another class.
        memory_gib: memory in GiB for the networks that are trained together.
    """

    widths: tuple[int, ...] = (64, 128, 256)
    networks: int = 20
    linearised: bool = True
    steps: int = 300
    trained: str = "network"
    training: str = "gradient_descent"
    batch_size: int | None = None
    loss: str = "squared"
    output_scale: tuple[float, ...] = (1.0,)
    centred: bool = False
    rates: tuple[float, ...] = ()
    initialiser: str = "gaussian"
    seed: int = 0
    between: tuple[int, ...] = ()
    memory_gib: float = 1.0

    def __post_init__(self) -> None:
        for name, values, empty in (
            ("widths", self.widths, False),
            ("output_scale", self.output_scale, False),
            ("rates", self.rates, True),
        ):
            if (not values and not empty) or len(set(values)) != len(values):
                raise ConfigError(f"finite.{name}={list(values)} must hold at least one value, each once")
        for width in self.widths:
            at_least("finite.widths", width, 1)
        for name in ("output_scale", "rates"):
            for value in getattr(self, name):
                at_least(f"finite.{name}", value, 0.0, strict=True)
        at_least("finite.networks", self.networks, 2)
        at_least("finite.steps", self.steps, 1)
        at_least("finite.batch_size", self.batch_size, 1)
        at_least("finite.seed", self.seed, 0)
        at_least("finite.memory_gib", self.memory_gib, 0.0, strict=True)
        choice("finite.trained", self.trained, ("network", "readout"))
        choice("finite.training", self.training, ("gradient_descent", "sgd"))
        choice("finite.loss", self.loss, ("squared", "cross_entropy"))
        choice("finite.initialiser", self.initialiser, ("gaussian", "orthogonal", "delta_orthogonal"))
        if (self.training == "sgd") != (self.batch_size is not None):
            raise ConfigError(
                f"finite.training={self.training} with finite.batch_size={self.batch_size}: set finite.training=sgd and "
                "finite.batch_size=32 together, or neither"
            )
        if self.between and (len(self.between) != 2 or min(self.between) < 0 or len(set(self.between)) == 1):
            raise ConfigError(
                f"finite.between={list(self.between)} must be two indices of training images, such as [0,1]"
            )

    @property
    def is_lazy_study(self) -> bool:
        """Whether several output scales are compared."""
        return len(self.output_scale) > 1

    @property
    def in_theorem(self) -> bool:
        """Whether the theorem covers the training: full batches and squared loss."""
        return self.training == "gradient_descent" and self.loss == "squared"

    @property
    def memory_bytes(self) -> int:
        """Memory of one chunk of networks, in bytes."""
        return math.floor(self.memory_gib * 2**30)
