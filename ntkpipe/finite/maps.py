"""Linear maps, which hold all weights of a finite network, and how a pass comes by their weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ntkpipe.errors import ConfigError


@dataclass(frozen=True)
class LinearMap:
    """One product with weights.

    Args:
        layer: of the network, such as `layer 2 (conv)`.
        entry: of the list of weights.
        shape: of W, of one repetition.
        fan_in: number of inputs that one output sums.
        w_std: standard deviation of one output for inputs of unit variance.
        b_std: of the bias; None has none.
        parameterization: `ntk` or `standard`.
        filter: height and width (of volumes depth, height and width) of a convolution; None of any other map.
        strides: of a convolution.
        padding: of a convolution.
        repeats: how often the map is repeated, each time with weights of its own: the first axes of its arrays. One number for each
            `repeat` around it.
        pixels: height and width of the output, if every pixel has weights and a bias of its own.
    """

    layer: str
    entry: int
    shape: tuple[int, ...]
    fan_in: int
    w_std: float
    b_std: float | None
    parameterization: str = "ntk"
    filter: tuple[int, ...] | None = None
    strides: tuple[int, ...] = (1, 1)
    padding: str = "VALID"
    repeats: tuple[int, ...] = ()
    pixels: tuple[int, int] | None = None

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
        return math.prod(self.repeats) * (
            math.prod(self.shape) + (0 if self.b_std is None else math.prod(self.bias_shape))
        )

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """Of the arrays W and b, repetitions first; None without a bias."""
        return (*self.repeats, *self.shape), None if self.b_std is None else (*self.repeats, *self.bias_shape)

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """Of the bias of one repetition: one number a channel, or a channel and pixel."""
        return (*(self.pixels or ()), self.shape[-1])


class Recorder:
    """Shapes of what a pass asks for. `lengths` are those of sequences, in passes that mask them."""

    def __init__(self) -> None:
        self.maps: list[LinearMap] = []
        self.inputs: list[tuple[int, ...]] = []
        self.signals: list[tuple[int, ...]] = []
        self.masks: list[tuple[tuple[int, ...], float]] = []
        self._entry = -1
        self._repeats: tuple[int, ...] = ()
        self.lengths: Any = None

    def begin(self) -> None:
        """The weights of another layer."""
        self._entry += 1

    def linear(self, product: Callable[[Any, Any], Any], x: Any, **settings: Any) -> Any:
        """Remember the map; zeros of the shape of its output."""
        made = LinearMap(entry=self._entry, repeats=self._repeats, **settings)
        self.maps.append(made)
        z = product(x, jnp.zeros(made.shape, x.dtype))
        self.inputs.append(x.shape[1:])
        self.signals.append(z.shape[1:])
        return z

    def repeat(self, run: Callable[[Any, Any], Any], x: Any, times: int) -> Any:
        """Remember the maps of `run(x, source)`, once for all repetitions."""
        before, self._repeats = self._repeats, (*self._repeats, times)
        x = run(x, self)
        self._repeats = before
        return x

    def mask(self, shape: tuple[int, ...], rate: float) -> Any:
        """Remember the mask."""
        if self._repeats:
            raise ConfigError("within repeat has no finite form here: write the layers out, or set rate to 1")
        self.masks.append((shape, rate))
        return jnp.ones((1, *shape))


class Given:
    """Weights, masks and perturbations, in the order in which a pass asks for them; keeps the inputs of all maps."""

    def __init__(
        self, maps: Sequence[LinearMap], weights: Sequence[Any], masks: Sequence[Any], shifts: Any, lengths: Any = None
    ) -> None:
        flat = [(w, entry[1]) for entry in weights for w in arrays_of(entry[0])]
        self._flat = list(zip(maps, flat, [None] * len(flat) if shifts is None else shifts, strict=True))[::-1]
        self._masks = iter(masks)
        self.inputs: list[Any] = []
        self.lengths = lengths

    def begin(self) -> None:
        """Nothing: weights come in order."""

    def linear(self, product: Callable[[Any, Any], Any], x: Any, **settings: Any) -> Any:
        """`scale * product + bias_scale * b`, and the perturbation."""
        del settings
        made, (w, b), shift = self._flat.pop()
        self.inputs.append(x)
        z = made.scale * product(x, w)
        if made.b_std is not None:
            z = z + made.bias_scale * b
        return z if shift is None else z + shift

    def repeat(self, run: Callable[[Any, Any], Any], x: Any, times: int) -> Any:
        """`x = run(x, source)` so many times, in a loop that is compiled once."""
        recorder = Recorder()
        recorder.lengths = self.lengths
        jax.eval_shape(lambda x: recorder.repeat(run, x, times), x)
        maps, *arrays = zip(*(self._flat.pop() for _ in recorder.maps), strict=True) if recorder.maps else ((), (), ())
        weights, shifts = arrays
        # Repetitions come first in arrays of weights, and after the images in those of images.
        moved = [None if s is None else jnp.moveaxis(s, 1, 0) for s in shifts]

        def once(x: Any, given: Any) -> Any:
            one = Given((), (), (), None, self.lengths)
            one._flat = list(zip(maps, *given, strict=True))[::-1]
            made = run(x, one)
            return made, one.inputs

        x, inputs = jax.lax.scan(once, x, (list(weights), moved), length=times)
        self.inputs += [jnp.moveaxis(h, 0, 1) for h in inputs]
        return x

    def mask(self, shape: tuple[int, ...], rate: float) -> Any:
        """The next one."""
        del shape, rate
        return next(self._masks)


def arrays_of(w: Any) -> tuple[Any, ...]:
    """The arrays of one entry's W: one, of an attention three."""
    return tuple(w) if isinstance(w, (tuple, list)) else (w,)
