"""Building blocks of the families in `zoo.py`: layers with the parameters of a family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.parameters import ACTIVATIONS

Spec = list[dict[str, Any]]

# Largest number of repetitions that are written out as layers.
_WRITTEN_OUT = 1000

FLATTEN = {"op": "flatten"}
GLOBAL_MEAN = {"op": "global_avg_pool"}


@dataclass(frozen=True)
class Parts:
    """The layers of a family, with its parameters."""

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
        """Return the nonlinearity."""
        return dict(self.activation_args or {}) | {"op": self.activation}

    @property
    def _weights(self) -> dict[str, Any]:
        return {"w_std": self.w_std, "b_std": self.b_std, "parameterization": self.parameterization}

    def dense(self, features: int) -> dict[str, Any]:
        """Return a dense layer."""
        return {"op": "dense", "features": features, **self._weights}

    def conv(self, features: int, stride: int = 1) -> dict[str, Any]:
        """Return a convolution."""
        taps = {"filter": list(self.filter), "strides": [stride] * max(2, len(self.filter)), "padding": self.padding}
        return {"op": "conv", "features": features, **taps, **self._weights}

    def convs(self, features: int, count: int) -> Spec:
        """Return `count` convolutions, each followed by the nonlinearity."""
        return repeated(count, [self.conv(features), self.phi])

    def residual(self, features: int, stride: int = 1, *, projects: bool = False) -> dict[str, Any]:
        """Return a pre-activation block (arXiv:1603.05027): two convolutions, with an identity or a convolution as
        shortcut.
        """
        main = [self.phi, self.conv(features, stride), self.phi, self.conv(features)]
        shortcut = [self.conv(features, stride)] if projects else []
        return {"op": "residual_sum", "branches": [main, shortcut]}

    def readout(self, pool: str = "gap") -> Spec:
        """Return global average pooling (`gap`) or flattening (`vec`), followed by a dense layer."""
        return [chosen("kernel.pool", pool, {"gap": GLOBAL_MEAN, "vec": FLATTEN}), self.dense(10)]


def repeated(count: int, layers: Spec) -> Spec:
    """Return the layers `count` times. Above 1,000 times, all but the first are in a `repeat`."""
    if count <= _WRITTEN_OUT:
        return [layer for _ in range(count) for layer in layers]
    return [*layers, {"op": "repeat", "times": count - 1, "layers": layers}]


def whole(name: str, value: Any, low: int = 0) -> int:
    """Return a whole number that is at least `low`.

    Raises:
        ConfigError: if the value is not such a number.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"{name}={value!r} must be a whole number, at least {low}")
    return value


def chosen(name: str, value: Any, choices: Mapping[Any, Any]) -> Any:
    """Return the value of a choice.

    Raises:
        ConfigError: if there is no such choice; the message lists the choices.
    """
    if value not in choices:
        raise ConfigError(f"{name}={value!r} is not one of {', '.join(map(str, choices))}")
    return choices[value]
