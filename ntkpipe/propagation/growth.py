"""Networks whose variance does not settle with depth: what can still be said of their signals."""

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

# Of the ratios of `E phi^2` and of `E phi'^2` at two variances: a function whose variance only scales has both equal to 1.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Growth:
    """Signals of a network that has no lasting variance, and so no phase.

    Args:
        activation: the nonlinearity.
        w_std: standard deviation of the weights of every layer.
        b_std: of the biases.
        variance: after linear layers 1 to `depth + 1`, the last of which is the readout; fewer where numbers overflow.
        kept: share of a small difference `1 - c` of correlations that is left at the readout.
        factor: by which each layer multiplies the variance (before it adds `b_std^2`) and squared gradients, if it is one number.
        critical_w_std: where networks of this `b_std` are critical; None if nowhere.
        critical_point: `w_std` of the one critical network without biases, if there is a point and no line.
        stable: variances that smaller or larger inputs lead to.
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
        """The variance grows layer by layer; otherwise it goes up and down and never settles."""
        return all(after >= before for before, after in zip(self.variance, self.variance[1:], strict=False))

    def to_dict(self) -> dict[str, Any]:
        """The fields, and those of a phase, which are None here but for `q_star` (infinite where the variance grows)."""
        nothing = dict.fromkeys(("c_star", "chi_c_star", "xi_q", "xi_c", "phase"))
        star = math.inf if self.grows else None
        return {**asdict(self), **nothing, "q_star": star, "chi_1": self.factor, "remark": self.lines()[0]}

    def lines(self) -> list[str]:
        """For people."""
        what = "grows without bound with depth" if self.grows else "goes up and down with depth and never settles"
        bias = f" and adds b_std^2 = {self.b_std**2:.4g}" if self.b_std else ""
        lines = [f"no phase: the variance {what}, so that there is no q_star; {self._critical()}"]
        if self.factor is not None:
            lines.append(
                f"each layer multiplies the variance by {self.factor:.4g}{bias}, and squared gradients by {self.factor:.4g}"
            )
        depth = len(self.variance) - 1
        lines.append(
            f"depth {depth}: the variance at the readout is {self.variance[-1]:.4g}; small differences 1 - c of correlations are "
            f"multiplied by {self.kept:.3g}"
        )
        if self.stable:
            lines.append(f"a stable variance is at {self.stable[0]:.6g}, which inputs of another size lead to")
        return lines

    def _critical(self) -> str:
        if self.critical_point is not None:
            return f"critical is one point, not a line: w_std={self.critical_point:.10g} with b_std=0"
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
    """Follow the variance layer by layer, for networks that `phase` refuses because it does not settle.

    Args:
        activation: name of a nonlinearity, or a layer.
        w_std: of the weights of every layer, above 0.
        b_std: of the biases, at least 0.
        depth: nonlinearities, at least 1.
        activation_args: the nonlinearity's parameters.
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
    """`w_std^2 E phi'^2`, if the variance only scales."""
    small, large = maps.squares(0.5), maps.squares(2.0)
    values = np.array([small.value / 0.5, large.value / 2.0, small.dot, large.dot], np.float64)
    return w2 * float(small.dot) if np.ptp(values) <= _ROUNDING * abs(values[0]) else None
