"""Tests of the theory's power laws in the width: fitted exponents, their errors over networks, and verdicts.

Errors come from resampling networks, never from resampling the outputs of one network. The bias of an ensemble's mean
is the distance of two means. Its square is corrected for noise, `|mean d|^2 - var(d) / networks`, where d is a
network's outputs minus the outputs of the infinite flow from the same initialisation. The mean of the latter is the
predicted mean, and most of the noise cancels in the difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

TOLERANCE = 0.15
"""A fitted exponent agrees with the expected one if it differs by less than this."""
# Expected exponent of the bias of an ensemble's mean and of its variance.
_OF_BIASES = -1.0
_RESAMPLES = 400
# With fewer networks, resampled errors are too small by at least a tenth.
_FEWEST = 10
# Values closer to 0 than this many standard errors are left out of the fit of logarithms.
_SIGNIFICANT = 2.0
# Relative error of a squared bias that an exponent needs: 30% of the square are 15% of the bias.
_WANTED = 0.3


@dataclass(frozen=True)
class Claim:
    """A power law that the theory predicts, with the measured values.

    Args:
        name: short identifier for programs.
        quantity: description of the quantity.
        expected: expected exponent.
        against: the variable of the power law, `width` or `output scale`.
        at: the widths or scales.
        values: measured values.
        errors: standard errors of the values over networks.
        exponent: fitted exponent; None if no fit is possible.
        exponent_error: standard error of the exponent.
        verdict: `holds`, `does not hold` or `undecided`.
        text: the verdict in words.
        networks_needed: number of networks that a decision needs; None if it is decided.
    """

    name: str
    quantity: str
    expected: float
    against: str
    at: tuple[float, ...]
    values: tuple[float, ...]
    errors: tuple[float, ...]
    exponent: float | None
    exponent_error: float | None
    verdict: str
    text: str
    networks_needed: int | None = None
    used: tuple[float, ...] = field(default=())

    def line(self) -> str:
        """Return the claim as one readable line."""
        found = "" if self.exponent is None else f"{self.exponent:+.2f} +- {self.exponent_error:.2f}, "
        more = "" if self.text == self.verdict else f": {self.text.removeprefix(f'{self.verdict} ')}"
        return f"{self.verdict:<13} {self.quantity}: {found}expected {self.expected:+.1f}{more}"


def fit_exponent(
    at: Sequence[float], values: Sequence[float], errors: Sequence[float] | None = None
) -> tuple[float, float]:
    """Return the slope of `log values` against `log at` by weighted least squares, and its standard error.

    Args:
        at: at least 2 positive numbers.
        values: positive values.
        errors: standard errors of the values; None gives all values equal weight and the slope an error of 0.
    """
    x, y = np.log(np.asarray(at, dtype=np.float64)), np.log(np.asarray(values, dtype=np.float64))
    relative = None if errors is None else np.asarray(errors, dtype=np.float64) / np.asarray(values, dtype=np.float64)
    if relative is None or not (relative > 0).all():
        x = x - x.mean()
        return float(x @ y / (x @ x)), 0.0
    weights = relative**-2.0
    x = x - np.average(x, weights=weights)
    spread = float(np.sum(weights * x * x))
    return float(np.sum(weights * x * y) / spread), spread**-0.5


def root_mean_square(
    name: str,
    quantity: str,
    expected: float,
    members: Mapping[float, np.ndarray],
    *,
    against: str = "width",
    seed: int = 0,
) -> Claim:
    """Return the claim about the root mean square over networks.

    Args:
        name: name of the claim.
        quantity: the quantity in words.
        expected: expected exponent.
        members: one value per network, by width (or output scale).
        against: name of the variable of the power law.
        seed: seed of the resampling.
    """
    rng = np.random.default_rng(seed)
    at = tuple(sorted(members))
    squares = [np.square(np.asarray(members[one], dtype=np.float64)) for one in at]
    values = [math.sqrt(float(one.mean())) for one in squares]
    drawn = np.array([np.sqrt((_counts(rng, len(one)) @ one) / len(one)) for one in squares])
    errors = drawn.std(axis=1, ddof=1)
    networks = min(len(one) for one in squares)
    return _decided(name, quantity, expected, against, at, values, errors.tolist(), networks, _as_root)


def bias_of_mean(quantity: str, differences: Mapping[float, np.ndarray], *, seed: int = 0) -> Claim:
    """Return the claim about the distance of an ensemble's mean from the predicted one, as a root mean square.

    Args:
        quantity: the quantity in words.
        differences: outputs of each network minus those of the infinite flow from the same initialisation,
            `(networks, outputs)` for each width.
        seed: seed of the resampling.
    """
    rng = np.random.default_rng(seed)
    at = tuple(sorted(differences))
    found = [_squared_bias(rng, np.asarray(differences[one], dtype=np.float64)) for one in at]
    values = [math.copysign(math.sqrt(abs(square)), square) for square, _ in found]
    # If a square is not larger than its error, use the root of the error instead of the root of the value.
    errors = [
        error / (2 * abs(value)) if square > error else math.sqrt(error)
        for (square, error), value in zip(found, values, strict=True)
    ]
    networks = min(len(one) for one in differences.values())
    return _decided("mean", quantity, _OF_BIASES, "width", at, values, errors, networks, _as_bias)


def bias_of_variance(
    quantity: str,
    outputs: Mapping[float, np.ndarray],
    predicted: Mapping[float, np.ndarray],
    *,
    seed: int = 0,
) -> Claim:
    """Return the claim about the variance over networks: the mean over outputs of its ratio to the prediction, minus 1.

    Args:
        quantity: the quantity in words.
        outputs: outputs of each network, `(networks, outputs)` for each width.
        predicted: predicted variances above 0, `(outputs,)` for each width.
        seed: seed of the resampling.
    """
    rng = np.random.default_rng(seed)
    at, values, errors = tuple(sorted(outputs)), [], []
    for one in at:
        f = np.asarray(outputs[one], dtype=np.float64) / np.sqrt(predicted[one])
        f = f - f.mean(axis=0)
        networks, square = len(f), np.square(f).mean(axis=1)
        values.append(float(square.sum() / (networks - 1) - 1.0))
        counts = _counts(rng, networks)
        means = counts @ f / networks
        ratios = (counts @ square / networks - np.square(means).mean(axis=1)) * networks / (networks - 1)
        errors.append(float(ratios.std(ddof=1)))
    signs = {math.copysign(1.0, v) for v, e in zip(values, errors, strict=True) if abs(v) > _SIGNIFICANT * e}
    sizes = [abs(v) for v in values] if len(signs) == 1 else values
    networks = min(len(one) for one in outputs.values())
    made = _decided("variance", quantity, _OF_BIASES, "width", at, sizes, errors, networks, _as_root)
    return Claim(**{**made.__dict__, "values": tuple(values)})


def _counts(rng: np.random.Generator, networks: int) -> np.ndarray:
    """Return how often each network was drawn, (resamples, networks)."""
    return rng.multinomial(networks, np.full(networks, 1.0 / networks), size=_RESAMPLES).astype(np.float64)


def _squared_bias(rng: np.random.Generator, d: np.ndarray) -> tuple[float, float]:
    """Return the noise-corrected mean over outputs of the squared mean over networks, and its standard error."""
    networks = len(d)

    def corrected(counts: np.ndarray) -> np.ndarray:
        mean = np.square(counts @ d / networks).mean(axis=1)
        second = counts @ np.square(d).mean(axis=1) / networks
        return mean - (second - mean) / (networks - 1)

    return float(corrected(np.ones((1, networks)))[0]), float(corrected(_counts(rng, networks)).std(ddof=1))


Needed = Callable[[float, float, float, float | None], float]


def _as_root(networks: float, value: float, error: float, slope_error: float | None) -> float:
    """Return the number of networks for a value of this size: errors fall as one over the root of the number."""
    wanted = (error / (0.5 * _WANTED * value)) ** 2
    return networks * max(wanted, 0.0 if slope_error is None else (slope_error / (0.5 * TOLERANCE)) ** 2)


def _as_bias(networks: float, value: float, error: float, slope_error: float | None) -> float:
    """Return the number of networks for a bias of this size: the error of its square falls as one over the number."""
    square = error**2 if error >= value else 2 * error * value
    return networks * max(
        square / (_WANTED * value**2), 0.0 if slope_error is None else (slope_error / (0.5 * TOLERANCE)) ** 2
    )


def _decided(
    name: str,
    quantity: str,
    expected: float,
    against: str,
    at: tuple[float, ...],
    values: Sequence[float],
    errors: Sequence[float],
    networks: int,
    needed: Needed,
) -> Claim:
    used = [k for k, (v, e) in enumerate(zip(values, errors, strict=True)) if v > _SIGNIFICANT * e and v > 0]
    exponent = error = None
    if len(used) > 1:
        exponent, error = fit_exponent([at[k] for k in used], [values[k] for k in used], [errors[k] for k in used])
    wanted: int | None = None
    if len(at) < 2:
        verdict, text = "undecided", f"an exponent needs several values of {against}: give several"
    elif networks < _FEWEST:
        verdict, text, wanted = (
            "undecided",
            f"standard errors from {networks} networks are not reliable: use at least {_FEWEST}",
            _FEWEST,
        )
    elif exponent is not None and error is not None and error <= TOLERANCE:
        near = abs(exponent - expected) <= max(TOLERANCE, 2.0 * error)
        verdict = "holds" if near else "does not hold"
        text = (
            "holds"
            if near
            else f"does not hold at these {against}s: falls {'faster' if exponent < expected else 'slower'}"
        )
    else:
        # The size that the claim predicts at the last width, from the value at the first width.
        size = max(values[0], errors[0]) * (at[-1] / at[0]) ** expected
        wanted = _rounded(needed(networks, size, errors[-1], error)) if size > 0 else None
        verdict = "undecided"
        lost = [f"{at[k]:g}" for k in range(len(at)) if k not in used]
        where = f" (at {against} {', '.join(lost)} it is no larger than its noise)" if lost else ""
        text = f"sampling noise of {networks} networks does not allow a verdict{where}"
        text += "" if wanted is None or wanted <= networks else f": use about {wanted:,} networks"
    return Claim(
        name, quantity, expected, against, at, tuple(values), tuple(errors), exponent, error, verdict, text, wanted,
        tuple(at[k] for k in used),
    )  # fmt: skip


def _rounded(networks: float) -> int:
    """Round up to two digits."""
    if not math.isfinite(networks):
        return 0
    unit = 10 ** max(0, math.floor(math.log10(max(networks, 1.0))) - 1)
    return int(math.ceil(networks / unit) * unit)


def as_record(claim: Claim) -> dict[str, Any]:
    """Return the claim as a dictionary of plain values."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in claim.__dict__.items()}
