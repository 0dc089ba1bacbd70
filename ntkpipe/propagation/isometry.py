"""Dynamical isometry: squared singular values of a deep network's input-output Jacobian (arXiv:1711.04735,
arXiv:1802.09979).

At L layers their mean is `chi_1^L` and their variance `chi_1^(2 L) L (mu_2 / mu_1^2 - 1 - s_1)`, with `mu_k = E
phi'^(2 k)`, and
s_1 = 0 of orthogonal and -1 of Gaussian weights.

Kernels do not contain fourth powers of slopes, so the function itself is needed. It is given as a formula, whose `E
phi'^2` is compared with that of the kernel in every call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.architecture import precision_context
from ntkpipe.kernels.registry import build_layer
from ntkpipe.kernels.spec import canonical_spec
from ntkpipe.propagation.kinks import kinks
from ntkpipe.propagation.maps import activation_maps
from ntkpipe.propagation.panels import Panels

# Formulas of nonlinearities with closed-form kernels, with parameters in braces. Series know their own formula.
_FORMULAS = {
    "relu": "max(x, 0)",
    "leaky_relu": "max(x, 0) + {alpha} * min(x, 0)",
    "ab_relu": "{b} * max(x, 0) + {a} * min(x, 0)",
    "abs": "abs(x)",
    "identity": "x",
    "erf": "{a} * erf({b} * x) + {c}",
    "gelu": "0.5 * x * (1 + erf(x / sqrt(2)))",
    "sin": "{a} * sin({b} * x + {c})",
    "cos": "{a} * cos({b} * x + {c})",
    "exp": "{a} * exp({b} * x)",
    "gaussian": "{a} * exp({b} * x ** 2)",
    "rbf": "sqrt(2) * sin(sqrt(2 * {gamma}) * x + pi / 4)",
    "sigmoid_like": "0.5 * erf(x / 2.4020563531719796) + 0.5",
}


@dataclass(frozen=True)
class Isometry:
    """Moments of the squared singular values of the input-output Jacobian.

    Args:
        mean: `chi_1^depth`.
        variance_gaussian: variance with independent normal weights.
        variance_orthogonal: variance with orthogonal weights.
        slope_spread: `mu_2 / mu_1^2 - 1` of the nonlinearity, which is 0 for linear functions and 1 for ReLU.
    """

    mean: float
    variance_gaussian: float
    variance_orthogonal: float
    slope_spread: float


def isometry(
    activation: str | Mapping[str, Any],
    *,
    w_std: float,
    q_star: float,
    depth: int,
    activation_args: Mapping[str, Any] | None = None,
) -> Isometry:
    """Return the mean and variance of the squared singular values at a fixed point of the variance.

    Args:
        activation: a nonlinearity, see `phase`.
        w_std: standard deviation of the weights.
        q_star: variance of the activations, at least 0.
        depth: number of layers.
        activation_args: parameters of the nonlinearity.

    Raises:
        ConfigError: if the nonlinearity is given only by its kernel, or jumps.
    """
    maps = activation_maps(activation, activation_args)
    stated = dict(activation) if isinstance(activation, Mapping) else {"op": activation, **(activation_args or {})}
    function = _formula(stated)
    with precision_context(np.float64):
        second, fourth = map(float, Panels(function, kinks(function)[0]).fourth(jnp.asarray(float(q_star))))
    own = float(maps.squares(q_star).dot)
    if second == 0.0 or abs(second / own - 1.0) > 1e-6 + float(maps.quadrature_error(q_star)):
        raise ConfigError(
            f"{maps.name}: the slopes have no accurate moments, because the function jumps or its slope is not bounded: choose "
            "another nonlinearity"
        )
    spread = max(fourth / second**2 - 1.0, 0.0)
    mean = (w_std**2 * own) ** depth
    return Isometry(mean, mean**2 * depth * (spread + 1.0), mean**2 * depth * spread, spread)


def _formula(stated: Mapping[str, Any]) -> str:
    (layer,) = canonical_spec([stated])
    if layer["op"] in _FORMULAS:
        return _FORMULAS[layer["op"]].format(**{key: repr(value) for key, value in layer.items() if key != "op"})
    function = getattr(build_layer(layer), "function", None)
    if function is None:
        known = ", ".join(_FORMULAS)
        raise ConfigError(
            f"{layer['op']} is given only by its kernel, or has unbounded slopes: choose {known}, or a formula"
        )
    return function
