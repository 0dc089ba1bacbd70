"""Linear maps, which hold all weights of a finite network, and how a pass comes by their weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp


@dataclass(frozen=True)
class LinearMap:
    """One product with weights.

    Args:
        layer: of the network, such as `layer 2 (conv)`.
        entry: of the list of weights.
        shape: of W.
        fan_in: number of inputs that one output sums.
        w_std: standard deviation of one output for inputs of unit variance.
        b_std: of the bias; None has none.
        parameterization: `ntk` or `standard`.
        filter: height and width of a convolution; None of any other map.
        strides: of a convolution.
        padding: of a convolution.
    """

    layer: str
    entry: int
    shape: tuple[int, ...]
    fan_in: int
    w_std: float
    b_std: float | None
    parameterization: str = "ntk"
    filter: tuple[int, int] | None = None
    strides: tuple[int, int] = (1, 1)
    padding: str = "VALID"

    @property
    def scale(self) -> float:
        """Factor of the product in the pass."""
        return self.w_std / math.sqrt(self.fan_in) if self.parameterization == "ntk" else 1.0

    @property
    def bias_scale(self) -> float:
        """Factor of the bias in the pass; 0 without one."""
        if self.b_std is None:
            return 0.0
        return self.b_std if self.parameterization == "ntk" else 1.0

    @property
    def deviations(self) -> tuple[float, float]:
        """Standard deviations of the weights and of the bias at initialisation."""
        if self.parameterization == "ntk":
            return 1.0, 1.0
        return self.w_std / math.sqrt(self.fan_in), self.b_std or 0.0

    @property
    def parameters(self) -> int:
        """How many, the bias included."""
        return math.prod(self.shape) + (0 if self.b_std is None else self.outputs)

    @property
    def outputs(self) -> int:
        """Length of the bias."""
        return self.shape[-1]


class Recorder:
    """Shapes of what a pass asks for."""

    def __init__(self) -> None:
        self.maps: list[LinearMap] = []
        self.inputs: list[tuple[int, ...]] = []
        self.signals: list[tuple[int, ...]] = []
        self.masks: list[tuple[tuple[int, ...], float]] = []
        self._entry = -1

    def begin(self) -> None:
        """The weights of another layer."""
        self._entry += 1

    def linear(self, product: Callable[[Any, Any], Any], x: Any, **settings: Any) -> Any:
        """Remember the map; zeros of the shape of its output."""
        made = LinearMap(entry=self._entry, **settings)
        self.maps.append(made)
        z = product(x, jnp.zeros(made.shape, x.dtype))
        self.inputs.append(x.shape[1:])
        self.signals.append(z.shape[1:])
        return z

    def mask(self, shape: tuple[int, ...], rate: float) -> Any:
        """Remember the mask."""
        self.masks.append((shape, rate))
        return jnp.ones((1, *shape))


class Given:
    """Weights, masks and perturbations, in the order in which a pass asks for them; keeps the inputs of all maps."""

    def __init__(self, maps: Sequence[LinearMap], weights: Sequence[Any], masks: Sequence[Any], shifts: Any) -> None:
        flat = [(w, entry[1]) for entry in weights for w in arrays_of(entry[0])]
        self._flat: Iterator[Any] = iter(zip(maps, flat, [None] * len(flat) if shifts is None else shifts, strict=True))
        self._masks = iter(masks)
        self.inputs: list[Any] = []

    def begin(self) -> None:
        """Nothing: weights come in order."""

    def linear(self, product: Callable[[Any, Any], Any], x: Any, **settings: Any) -> Any:
        """`scale * product + bias_scale * b`, and the perturbation."""
        del settings
        made, (w, b), shift = next(self._flat)
        self.inputs.append(x)
        z = made.scale * product(x, w)
        if made.b_std is not None:
            z = z + made.bias_scale * b
        return z if shift is None else z + shift

    def mask(self, shape: tuple[int, ...], rate: float) -> Any:
        """The next one."""
        del shape, rate
        return next(self._masks)


def arrays_of(w: Any) -> tuple[Any, ...]:
    """The arrays of one entry's W: one, of an attention three."""
    return tuple(w) if isinstance(w, (tuple, list)) else (w,)
