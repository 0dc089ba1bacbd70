"""Linear maps, which hold all weights of a finite network, and the sources that give a forward pass its weights."""

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
    """One product with weights W, and its bias b.

    Args:
        layer: name of the layer, such as `layer 2 (conv)`.
        entry: index of the layer's entry in the list of weights.
        shape: shape of W in one repetition.
        fan_in: number of inputs that one output sums.
        w_std: standard deviation of one output for inputs of unit variance.
        b_std: standard deviation of the bias; None means no bias.
        parameterization: `ntk` or `standard`.
        filter: filter size of a convolution, `(height, width)` or `(depth, height, width)`; None for all other maps.
        strides: strides of a convolution.
        padding: padding of a convolution.
        repeats: number of repetitions with their own weights, one for each `repeat` around the map. These are the first
            axes of its arrays.
        pixels: height and width of the output, if every pixel has its own weights and bias.
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
        """Factor of the product in the forward pass."""
        return self.w_std / math.sqrt(self.fan_in) if self.parameterization == "ntk" else 1.0

    @property
    def bias_scale(self) -> float:
        """Factor of the bias in the forward pass; 0 without a bias."""
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
        """Number of parameters, including the bias."""
        return math.prod(self.repeats) * (
            math.prod(self.shape) + (0 if self.b_std is None else math.prod(self.bias_shape))
        )

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """Shapes of the arrays W and b with their repetitions first; None in place of b without a bias."""
        return (*self.repeats, *self.shape), None if self.b_std is None else (*self.repeats, *self.bias_shape)

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """Shape of the bias in one repetition: one number per channel, or per pixel and channel."""
        return (*(self.pixels or ()), self.shape[-1])


class Recorder:
    """A source that records the maps and masks of a forward pass, and the shapes of inputs and signals.

    `lengths` are the lengths of sequences in passes that mask them.
    """

    def __init__(self) -> None:
        self.maps: list[LinearMap] = []
        self.inputs: list[tuple[int, ...]] = []
        self.signals: list[tuple[int, ...]] = []
        self.masks: list[tuple[tuple[int, ...], float]] = []
        self._entry = -1
        self._repeats: tuple[int, ...] = ()
        self.lengths: Any = None

    def begin(self) -> None:
        """Begin the next layer's entry of weights."""
        self._entry += 1

    def linear(self, product: Callable[[Any, Any], Any], x: Any, **settings: Any) -> Any:
        """Record the map and return zeros with the shape of its output."""
        made = LinearMap(entry=self._entry, repeats=self._repeats, **settings)
        self.maps.append(made)
        z = product(x, jnp.zeros(made.shape, x.dtype))
        self.inputs.append(x.shape[1:])
        self.signals.append(z.shape[1:])
        return z

    def repeat(self, run: Callable[[Any, Any], Any], x: Any, times: int) -> Any:
        """Record the maps of `run(x, source)` once for all repetitions, and return its output."""
        before, self._repeats = self._repeats, (*self._repeats, times)
        x = run(x, self)
        self._repeats = before
        return x

    def mask(self, shape: tuple[int, ...], rate: float) -> Any:
        """Record the mask and return ones, `(1, *shape)`.

        Raises:
            ConfigError: if the mask is within a `repeat`.
        """
        if self._repeats:
            raise ConfigError("within repeat has no finite form here: write the layers out, or set rate to 1")
        self.masks.append((shape, rate))
        return jnp.ones((1, *shape))


class Given:
    """A source of weights, masks and perturbations in the order of the pass; it keeps the inputs of all maps."""

    def __init__(
        self, maps: Sequence[LinearMap], weights: Sequence[Any], masks: Sequence[Any], shifts: Any, lengths: Any = None
    ) -> None:
        flat = [(w, entry[1]) for entry in weights for w in arrays_of(entry[0])]
        self._flat = list(zip(maps, flat, [None] * len(flat) if shifts is None else shifts, strict=True))[::-1]
        self._masks = iter(masks)
        self.inputs: list[Any] = []
        self.lengths = lengths

    def begin(self) -> None:
        """Do nothing, because the weights are in order."""

    def linear(self, product: Callable[[Any, Any], Any], x: Any, **settings: Any) -> Any:
        """Return `scale * product + bias_scale * b`, plus the perturbation if there is one."""
        del settings
        made, (w, b), shift = self._flat.pop()
        self.inputs.append(x)
        z = made.scale * product(x, w)
        if made.b_std is not None:
            z = z + made.bias_scale * b
        return z if shift is None else z + shift

    def repeat(self, run: Callable[[Any, Any], Any], x: Any, times: int) -> Any:
        """Return `x` after `x = run(x, source)` has run `times` times, in a loop that is compiled once."""
        recorder = Recorder()
        recorder.lengths = self.lengths
        jax.eval_shape(lambda x: recorder.repeat(run, x, times), x)
        maps, *arrays = zip(*(self._flat.pop() for _ in recorder.maps), strict=True) if recorder.maps else ((), (), ())
        weights, shifts = arrays
        # Repetitions are the first axis of weights, and the axis after the images in perturbations.
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
        """Return the next mask."""
        del shape, rate
        return next(self._masks)


def arrays_of(w: Any) -> tuple[Any, ...]:
    """Return the arrays of one entry's W: several for an attention layer, one for all other layers."""
    return tuple(w) if isinstance(w, (tuple, list)) else (w,)
