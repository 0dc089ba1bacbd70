"""Signal propagation in networks whose variance does not converge with depth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ntkpipe.propagation.critical import critical_line, critical_w_std
from ntkpipe.propagation.maps import Maps, activation_maps
from ntkpipe.propagation.phase import check_deviations
from ntkpipe.propagation.variance import fixed_points

# Tolerance for positively homogeneous functions, whose `E phi^2 / q` and `E phi'^2` are equal at all variances.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Growth:
    """Signals in a network whose variance has no limit, and which therefore has no phase.

    Args:
        activation: the nonlinearity.
        w_std: standard deviation of the weights of every layer.
        b_std: standard deviation of the biases.
        variance: variance after linear layers 1 to `depth + 1`, the last of which is the readout; fewer if it
            overflows.
        kept: factor by which the network multiplies a small difference `1 - c` of correlations.
        factor: factor by which each layer multiplies the variance (before it adds `b_std^2`) and squared gradients;
            None if it depends on the variance.
        critical_w_std: `w_std` at which networks with this `b_std` are critical; None if there is none.
        critical_point: `w_std` of the only critical network, which has no biases; None if there is a critical line.
        stable: stable fixed points of the variance, which smaller or larger inputs reach.
    """

    activation: str
    w_std: float
    b_std: float
    variance: tuple[float, ...]
    kept: float
    factor: float | None
    critical_w_std: float | None
    critical_point: float | None
    stable: tuple[float, ...]

    @property
    def grows(self) -> bool:
        """Whether the variance grows without bound; otherwise it oscillates."""
        return all(after >= before for before, after in zip(self.variance, self.variance[1:], strict=False))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields together with those of a phase. The latter are None, except `q_star`, which is infinite if
        the variance grows.
        """
        nothing = dict.fromkeys(("c_star", "chi_c_star", "xi_q", "xi_c", "phase"))
        star = math.inf if self.grows else None
        return {**asdict(self), **nothing, "q_star": star, "chi_1": self.factor, "remark": self.lines()[0]}

    def lines(self) -> list[str]:
        """Return a readable summary."""
        what = "grows without bound with depth" if self.grows else "oscillates with depth without a limit"
        bias = f" and adds b_std^2 = {self.b_std**2:.4g}" if self.b_std else ""
        lines = [f"no phase (ordered or chaotic), because the variance {what}; {self._critical()}"]
        if self.factor is not None:
            lines.append(
                f"each layer multiplies the variance by {self.factor:.4g}{bias}, and squared gradients by {self.factor:.4g}"
            )
        depth = len(self.variance) - 1
        lines.append(
            f"at depth {depth} the variance at the readout is {self.variance[-1]:.4g}, and the network multiplies small differences "
            f"1 - c of correlations by {self.kept:.3g}"
        )
        if self.stable:
            lines.append(
                f"there is a stable fixed point at {self.stable[0]:.6g}, which inputs of another variance reach"
            )
        return lines

    def _critical(self) -> str:
        if self.critical_point is not None:
            return f"the only critical network has w_std={self.critical_point:.10g} and b_std=0"
        if self.critical_w_std is not None:
            return f"critical w_std at this b_std is {self.critical_w_std:.10g}"
        return "no w_std is critical at this b_std"


def growth(
    activation: str | Mapping[str, Any],
    *,
    w_std: float,
    b_std: float = 0.0,
    depth: int = 100,
    activation_args: Mapping[str, Any] | None = None,
    input_variance: float = 1.0,
) -> Growth:
    """Follow the variance layer by layer, for networks for which `phase` raises `UnsettledError`.

    Args:
        activation: name of a nonlinearity, or a layer.
        w_std: standard deviation of the weights of every layer, above 0.
        b_std: standard deviation of the biases, at least 0.
        depth: number of nonlinearities, at least 1.
        activation_args: parameters of the nonlinearity.
        input_variance: mean square of the inputs' features.

    Raises:
        ConfigError: if an argument is out of range.
    """
    check_deviations(w_std, b_std, input_variance)
    maps, w2, b2 = activation_maps(activation, activation_args), float(w_std) ** 2, float(b_std) ** 2
    variance, kept = [w2 * input_variance + b2], 1.0
    with np.errstate(all="ignore"):
        for _ in range(depth):
            q = variance[-1]
            made = maps.squares(q)
            after = w2 * float(made.value) + b2
            if not math.isfinite(after):
                break
            kept *= w2 * float(made.dot) * q / after
            variance.append(after)
    line = critical_line(maps)
    point = float(line.w_std[0]) if line.is_point else None
    return Growth(
        activation=maps.name,
        w_std=float(w_std),
        b_std=float(b_std),
        variance=tuple(variance),
        kept=kept,
        factor=_factor(maps, w2),
        critical_w_std=critical_w_std(maps, float(b_std), input_variance),
        critical_point=point,
        stable=tuple(point.q for point in fixed_points(maps, w2, b2) if point.is_stable),
    )


def _factor(maps: Maps, w2: float) -> float | None:
    """Return `w_std^2 E phi'^2` if it is equal at all variances, else None."""
    small, large = maps.squares(0.5), maps.squares(2.0)
    values = np.array([small.value / 0.5, large.value / 2.0, small.dot, large.dot], np.float64)
    return w2 * float(small.dot) if np.ptp(values) <= _ROUNDING * abs(values[0]) else None
