"""The phase of a deep network with one nonlinearity, `w_std` and `b_std` (arXiv:1606.05340, arXiv:1611.01232)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from ntkpipe.errors import ConfigError
from ntkpipe.propagation.correlation import CRITICAL, correlations, depth_scale
from ntkpipe.propagation.critical import critical_w_std
from ntkpipe.propagation.maps import Maps, activation_maps
from ntkpipe.propagation.variance import FixedPoint, fixed_points, settled

PhaseName = Literal["ordered", "chaotic", "critical"]


class UnsettledError(ConfigError):
    """The variance grows without bound with depth or oscillates, so there is no phase. See `growth` instead."""


@dataclass(frozen=True)
class Phase:
    """Signal propagation in the limit of many layers.

    Args:
        activation: the nonlinearity.
        w_std: standard deviation of the weights of every layer.
        b_std: standard deviation of the biases.
        q_star: limit of the variance of the activations for these inputs.
        chi_1: slope of the correlation map at 1, the factor by which each layer multiplies squared gradients. It is
            infinite if the nonlinearity jumps.
        c_star: limit of the correlation of any two inputs; NaN if it depends on the inputs, because layers become linear.
        chi_c_star: slope of the correlation map at c_star.
        xi_q: number of layers in which a deviation of the variance falls to 1 / e; infinite for ReLU at criticality.
        xi_c: number of layers in which a deviation of the correlation falls to 1 / e; infinite at criticality.
        phase: `ordered`: correlations converge to 1, or the variance to 0 (chi_1 < 1). `chaotic`: correlations converge
            to a value below 1. `critical`: chi_1 is 1.
        critical_w_std: `w_std` at which networks with this `b_std` are critical; None if there is none.
        quadrature_error: relative error of the moments; 0 for closed forms.
        fixed_points: all fixed points of the variance; empty if every variance is fixed (ReLU at its critical point).
    """

    activation: str
    w_std: float
    b_std: float
    q_star: float
    chi_1: float
    c_star: float
    chi_c_star: float
    xi_q: float
    xi_c: float
    phase: PhaseName
    critical_w_std: float | None
    quadrature_error: float
    fixed_points: tuple[FixedPoint, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the phase as nested plain values."""
        points = [{"q": p.q, "slope": p.slope, "stable": p.is_stable} for p in self.fixed_points]
        return asdict(self) | {"fixed_points": points}


def phase(
    activation: str | Mapping[str, Any],
    *,
    w_std: float,
    b_std: float = 0.0,
    activation_args: Mapping[str, Any] | None = None,
    input_variance: float = 1.0,
) -> Phase:
    """Return the phase of a network of many layers `w_std / sqrt(fan_in) W phi(x) + b_std b`.

    Args:
        activation: name of a nonlinearity, or a layer such as `{"op": "elementwise", "function": "x * sigmoid(x)"}`.
        w_std: standard deviation of the weights of every layer, above 0.
        b_std: standard deviation of the biases, at least 0.
        activation_args: parameters of the nonlinearity, such as `{"alpha": 0.1}`.
        input_variance: mean square of the input features. It decides which fixed point is reached if there are several.

    Raises:
        ConfigError: if an argument is out of range.
        UnsettledError: if the variance has no limit: it grows without bound or oscillates.
    """
    check_deviations(w_std, b_std, input_variance)
    maps = activation_maps(activation, activation_args)
    w2, b2 = np.array([float(w_std) ** 2]), np.array([float(b_std) ** 2])
    start = w2 * input_variance + b2
    q = settled(maps, w2, b2, start)
    points = fixed_points(maps, float(w2[0]), float(b2[0]))
    critical = critical_w_std(maps, float(b_std), input_variance)
    _check_settled(maps, float(q[0]), points, w_std, b_std, critical)
    made = correlations(maps, w2, q)
    slope = float(w2[0] * maps.squares(q).slope[0])
    chi_1 = float(made.chi_1[0])
    return Phase(
        activation=maps.name,
        w_std=float(w_std),
        b_std=float(b_std),
        q_star=float(q[0]),
        chi_1=chi_1,
        c_star=float(made.c_star[0]),
        chi_c_star=float(made.chi_c_star[0]),
        xi_q=float(depth_scale(np.array(slope))),
        xi_c=float(depth_scale(made.chi_c_star)[0]),
        phase=phase_name(chi_1),
        critical_w_std=critical,
        quadrature_error=float(maps.quadrature_error(q)[0]),
        fixed_points=tuple(points),
    )


def phase_name(chi_1: float) -> PhaseName:
    """Return the name of the phase, given the slope of the correlation map at 1."""
    if abs(chi_1 - 1.0) <= CRITICAL:
        return "critical"
    return "chaotic" if chi_1 > 1.0 else "ordered"


def check_deviations(w_std: float, b_std: float, input_variance: float = 1.0) -> None:
    """Check the standard deviations and the input variance.

    Raises:
        ConfigError: if a number is not finite, `w_std` or the variance not above 0, or `b_std` below 0.
    """
    for name, value, low in (
        ("w_std", w_std, "above"),
        ("b_std", b_std, "at least"),
        ("input_variance", input_variance, "above"),
    ):
        number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0.0 or (low == "above" and value == 0.0):
            raise ConfigError(f"{name}={value!r} must be a number {low} 0")


def _check_settled(
    maps: Maps, q: float, points: list[FixedPoint], w_std: float, b_std: float, critical: float | None
) -> None:
    if math.isfinite(q):
        return
    stable = [point for point in points if point.is_stable]
    way = (
        f"the critical value is w_std={critical:.10g}" if critical is not None else "no w_std is critical at this b_std"
    )
    if stable:
        other = (
            f" There is a stable fixed point at {stable[0].q:.6g}, which smaller inputs reach: scale the inputs down."
        )
    elif math.isnan(q):
        other = " Put layer_norm before the nonlinearity, or set a smaller w_std."
    else:
        other = " Set a smaller w_std, or put layer_norm before the nonlinearity."
    what = "grows without bound" if math.isinf(q) else "oscillates without a limit"
    raise UnsettledError(
        f"{maps.name} with w_std={w_std:.10g}, b_std={b_std:.10g}: the variance {what} with depth, so q_star and the "
        f"phase do not exist ({way}).{other}"
    )
