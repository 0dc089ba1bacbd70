"""Settings of the predictions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ntkpipe.config.checks import at_least, choice
from ntkpipe.errors import ConfigError


@dataclass(frozen=True)
class PredictConfig:
    """The predictions to make.

    Args:
        kernels: any of `ntk` (all layers are trained), `nngp` (only the readout is trained) and `ntkgp` (Gaussian
            process with the NTK as covariance). For `kernel=gram` and `kernel=features` it is `gram`.
        times: training times in gradient steps; `inf` is allowed. By default a logarithmic grid over the whole
            training, and inf.
        ridges: numbers to add to the diagonal of the train-train kernel, one or several.
        ridge_scale: `relative` (to the mean of the diagonal) or `absolute`.
        learning_rate: rate of gradient descent on ||f - y||^2 / (2 n c).
        dynamics: `gradient_flow`, `gradient_descent` (discrete steps), or `momentum`.
        momentum: coefficient of heavy-ball momentum, between 0 and 1.
        loss: training loss: `squared`, `cross_entropy` (classes; outputs are logits), `logistic` (one class against
            the rest) or `huber`. Losses other than `squared` give only means at finite times (docs/losses.md).
        huber_delta: for `huber`: the residual at which the loss becomes linear, in the units in which targets are
            solved.
        train_sizes: several training sizes. Each is a run in `run_dir/train_size=...` on a leading block of one Gram
            matrix, and `run_dir` gets their learning curve.
        theory: for `train_sizes`: add the squared errors that learning-curve theory predicts from the spectrum of the
            largest run.
        covariance: covariance of the outputs over networks: `none`, `diagonal` (the variance of every test point) or `full`
            (also between test points). docs/uncertainty.md says what it costs with each solver.
        covariance_batch: number of test points that are solved for together. By default it follows from the memory.
        selection: how to choose the ridge and the time that the report recommends, from training points alone:
            `held_out` (predict the last training points from the others), `loo` (leave-one-out, t = inf) or `none`.
        held_out: for `held_out`: a share of the training points, or a number of points if it is at least 1.
        error_estimate: estimates of numerical errors beside the bounds; 99% of the errors are below them. `auto`
            makes them if they take less than 15% of the solve, and for up to 10,000 training points. The other values
            are `true` and `false`.
        noise: for real targets: the variance of their noise, which is added to predictive variances. A number is in
            the squared units of the data; `likelihood` takes the most likely value under the kernel as a prior;
            `held_out` makes variances right on average for training points that are predicted from the others. By
            default nothing is added.
        initial: outputs at the start of training: `zero` (the mean over networks), `network` (those of the finite
            network of `kernel=empirical`), or an `.npz` with `train` (n, c) and `test` (p, c) in the order of the
            data.
    """

    kernels: tuple[str, ...] = ("ntk", "nngp")
    times: tuple[float, ...] | None = None
    ridges: tuple[float, ...] = (0.0,)
    ridge_scale: str = "relative"
    learning_rate: float = 1.0
    dynamics: str = "gradient_flow"
    momentum: float = 0.9
    loss: str = "squared"
    huber_delta: float = 1.0
    train_sizes: tuple[int, ...] = ()
    theory: bool = False
    covariance: str = "none"
    covariance_batch: int | None = None
    selection: str = "none"
    held_out: float = 0.1
    error_estimate: str = "auto"
    noise: str | None = None
    initial: str = "zero"

    def __post_init__(self) -> None:
        if not self.kernels or len(set(self.kernels)) != len(self.kernels):
            raise ConfigError(f"predict.kernels={list(self.kernels)} must name at least one kernel, each once")
        for kernel in self.kernels:
            choice("predict.kernels", kernel, ("ntk", "nngp", "ntkgp", "gram"))
        choice("predict.ridge_scale", self.ridge_scale, ("relative", "absolute"))
        choice("predict.dynamics", self.dynamics, ("gradient_flow", "gradient_descent", "momentum"))
        choice("predict.loss", self.loss, ("squared", "cross_entropy", "logistic", "huber"))
        at_least("predict.huber_delta", self.huber_delta, 0.0, strict=True)
        if self.loss != "squared":
            self._check_loss()
        choice("predict.covariance", self.covariance, ("none", "diagonal", "full"))
        at_least("predict.covariance_batch", self.covariance_batch, 1)
        choice("predict.error_estimate", self.error_estimate.lower(), ("auto", "true", "false"))
        self._check_noise()
        choice("predict.selection", self.selection, ("none", "held_out", "loo"))
        at_least("predict.held_out", self.held_out, 0.0, strict=True)
        if self.held_out >= 1 and self.held_out != int(self.held_out):
            raise ConfigError(f"predict.held_out={self.held_out} must be a share below 1, or a whole number of points")
        at_least("predict.learning_rate", self.learning_rate, 0.0, strict=True)
        for name in ("times", "ridges"):
            values = getattr(self, name)
            if values is None:
                continue
            if not values or len(set(values)) != len(values):
                raise ConfigError(f"predict.{name}={list(values)} must hold at least one value, each once")
            for value in values:
                at_least(f"predict.{name}", value, 0.0, may_be_infinite=name == "times")
        for size in self.train_sizes:
            at_least("predict.train_sizes", size, 2)
        if len(set(self.train_sizes)) != len(self.train_sizes):
            raise ConfigError(f"predict.train_sizes={list(self.train_sizes)} must hold each size once")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"predict.momentum={self.momentum} must be at least 0 and below 1")
        if self.initial != "zero":
            for name, value in (("covariance", self.covariance), ("selection", self.selection)):
                if value != "none":
                    raise ConfigError(
                        f"predict.{name}={value} assumes networks that start at zero on average: leave it out with "
                        "predict.initial"
                    )
        if self.dynamics == "gradient_descent" and self.times is not None:
            for t in self.times:
                if math.isfinite(t) and t != int(t):
                    raise ConfigError(f"predict.times={t}: discrete gradient descent takes whole steps")

    def _check_loss(self) -> None:
        """Refuse settings that are only for squared loss."""
        loss = f"predict.loss={self.loss}"
        if self.dynamics != "gradient_flow":
            raise ConfigError(f"{loss} is integrated as gradient flow: leave predict.dynamics={self.dynamics} out")
        if self.covariance != "none" or self.noise is not None:
            raise ConfigError(
                f"{loss} gives means only, because its flow is not linear and variances have no closed form: leave "
                "predict.covariance and predict.noise out"
            )
        if self.selection != "none":
            raise ConfigError(
                f"{loss} does not support selection: leave predict.selection={self.selection} out. metrics.json has "
                "all times and ridges, and ntkpipe tune chooses kernels"
            )
        if self.initial != "zero":
            raise ConfigError(f"{loss} supports only training from zero: leave predict.initial={self.initial} out")
        if self.theory:
            raise ConfigError(f"{loss}: learning-curve theory holds for squared loss only, so leave predict.theory out")
        if self.times is None or any(math.isinf(t) for t in self.times):
            why = {
                "huber": "has the same limit as squared loss: use predict.loss=squared for t = inf",
            }.get(
                self.loss,
                "has no finite limit if classes are separable, as with full-rank kernels: outputs grow like log t",
            )
            raise ConfigError(f"{loss} {why}. Set finite times, such as predict.times=[10,100,1000]")

    def _check_noise(self) -> None:
        if self.noise in (None, "likelihood", "held_out"):
            return
        try:
            at_least("predict.noise", float(self.noise), 0.0)
        except ValueError:
            raise ConfigError(
                f"predict.noise={self.noise} must be likelihood, held_out, or a variance such as predict.noise=0.1"
            ) from None
