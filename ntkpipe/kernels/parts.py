"""What the families of `zoo.py` are put together from: layers with a family's parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.parameters import ACTIVATIONS

Spec = list[dict[str, Any]]

# Repetitions that are written out as layers.
_WRITTEN_OUT = 1000

FLATTEN = {"op": "flatten"}
GLOBAL_MEAN = {"op": "global_avg_pool"}


@dataclass(frozen=True)
class Parts:
    """The layers that a family is made of, with its parameters."""

    w_std: float
    b_std: float | None
    activation: str
    activation_args: Mapping[str, Any] | None
    parameterization: str
    filter: Sequence[int] = (3, 3)
    padding: str = "SAME"

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            close = get_close_matches(str(self.activation), ACTIVATIONS, n=1)
            hint = f". Did you mean {close[0]}?" if close else ""
            raise ConfigError(f"kernel.activation={self.activation!r} is not one of {', '.join(ACTIVATIONS)}{hint}")

    @property
    def phi(self) -> dict[str, Any]:
        """The nonlinearity."""
        return dict(self.activation_args or {}) | {"op": self.activation}

    @property
    def _weights(self) -> dict[str, Any]:
        return {"w_std": self.w_std, "b_std": self.b_std, "parameterization": self.parameterization}

    def dense(self, features: int) -> dict[str, Any]:
        """A dense layer."""
        return {"op": "dense", "features": features, **self._weights}

    def conv(self, features: int, stride: int = 1) -> dict[str, Any]:
        """A convolution."""
        taps = {"filter": list(self.filter), "strides": [stride] * max(2, len(self.filter)), "padding": self.padding}
        return {"op": "conv", "features": features, **taps, **self._weights}

    def convs(self, features: int, count: int) -> Spec:
        """`count` times a convolution and a nonlinearity."""
        return repeated(count, [self.conv(features), self.phi])

    def residual(self, features: int, stride: int = 1, *, projects: bool = False) -> dict[str, Any]:
        """Pre-activation block (arXiv:1603.05027): two convolutions beside the identity, or beside a convolution."""
        main = [self.phi, self.conv(features, stride), self.phi, self.conv(features)]
        shortcut = [self.conv(features, stride)] if projects else []
        return {"op": "residual_sum", "branches": [main, shortcut]}

    def readout(self, pool: str = "gap") -> Spec:
        """Global average pooling (`gap`) or one weight per pixel (`vec`), and a dense layer."""
        return [chosen("kernel.pool", pool, {"gap": GLOBAL_MEAN, "vec": FLATTEN}), self.dense(10)]


def repeated(count: int, layers: Spec) -> Spec:
    """Layers so many times; beyond 1,000 times all but the first in a `repeat`."""
    if count <= _WRITTEN_OUT:
        return [layer for _ in range(count) for layer in layers]
    return [*layers, {"op": "repeat", "times": count - 1, "layers": layers}]


def whole(name: str, value: Any, low: int = 0) -> int:
    """A whole number, at least `low`.

    Raises:
        ConfigError: if it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"{name}={value!r} must be a whole number, at least {low}")
    return value


def chosen(name: str, value: Any, choices: Mapping[Any, Any]) -> Any:
    """What a choice stands for.

    Raises:
        ConfigError: naming the choices, if it is none of them.
    """
    if value not in choices:
        raise ConfigError(f"{name}={value!r} is not one of {', '.join(map(str, choices))}")
    return choices[value]
