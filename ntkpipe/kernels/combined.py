"""Kernels made from others, entry by entry: weighted sums, and products."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ntkpipe.errors import ConfigError


@dataclass(frozen=True)
class Combination:
    """What sums and products share. Parts are whatever a kernel stands as: an architecture, layers, a source of tiles, an array."""

    parts: tuple[Any, ...]

    kind: ClassVar[str] = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        if not self.parts:
            raise ConfigError(f"a {self.kind} of kernels needs at least one part")

    def leaves(self) -> tuple[Any, ...]:
        """All parts that are no combinations themselves, from left to right; a part that stands twice comes twice."""
        return tuple(self._leaves())

    def _leaves(self) -> Iterator[Any]:
        for part in self.parts:
            if isinstance(part, Combination):
                yield from part.leaves()
            else:
                yield part

    def map(self, function: Callable[[Any], Any]) -> Combination:
        """The same combination of what `function` makes of every leaf."""
        raise NotImplementedError

    def reduce(
        self,
        leaf: Callable[[Any], Any],
        add: Callable[[Sequence[float], list[Any]], Any],
        multiply: Callable[[list[Any]], Any],
    ) -> Any:
        """A value of the whole, from those of the leaves: `add` is given weights and values of a sum, `multiply` values of a product."""
        values = [
            part.reduce(leaf, add, multiply) if isinstance(part, Combination) else leaf(part) for part in self.parts
        ]
        return self._joined(values, add, multiply)

    def _joined(self, values: list[Any], add: Callable[..., Any], multiply: Callable[..., Any]) -> Any:
        raise NotImplementedError

    def combine(self, leaf: Callable[[Any], np.ndarray]) -> np.ndarray:
        """Entries of the combined kernel in float64, from those of the leaves, which all have one shape."""

        def add(weights: Sequence[float], values: list[np.ndarray]) -> np.ndarray:
            total = weights[0] * values[0].astype(np.float64)
            for weight, value in zip(weights[1:], values[1:], strict=True):
                total += weight * value
            return total

        def multiply(values: list[np.ndarray]) -> np.ndarray:
            total = values[0].astype(np.float64)
            for value in values[1:]:
                total *= value
            return total

        return self.reduce(leaf, add, multiply)

    def describe(self, leaf: Callable[[Any], Any]) -> dict[str, Any]:
        """JSON-ready, if what `leaf` makes of a part is: for identities and reports."""
        parts = [part.describe(leaf) if isinstance(part, Combination) else leaf(part) for part in self.parts]
        return {"kind": self.kind, "parts": parts}

    def write(self, leaf: Callable[[Any], str]) -> str:
        """As a formula for people, such as `0.5 A + 0.5 B`."""

        def inner(part: Any) -> str:
            return f"({part.write(leaf)})" if isinstance(part, Combination) else leaf(part)

        return self._written([inner(part) for part in self.parts])

    def _written(self, parts: list[str]) -> str:
        raise NotImplementedError


@dataclass(frozen=True)
class KernelSum(Combination):
    """The sum of kernels, each times its weight; NNGP and NTK alike.

    It is exact for an ensemble of independent networks, `f = sum_i sqrt(w_i) f_i` of any architectures, trained together: both
    kernels of `f` are the weighted sums of theirs. The average of several depths is a sum with equal weights.

    Args:
        parts: kernels, sums and products among them.
        weights: one per part, at least 0 and not all 0; None is `1 / parts` each, the average.

    Raises:
        ConfigError: if weights do not fit.

    Example:
        >>> KernelSum(("a", "b")).weights
        (0.5, 0.5)
    """

    weights: tuple[float, ...] = field(default=None)  # type: ignore[assignment]  # settled below

    kind: ClassVar[str] = "sum"

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [1.0 / len(self.parts)] * len(self.parts) if self.weights is None else list(self.weights)
        object.__setattr__(self, "weights", tuple(float(weight) for weight in given))
        if len(self.weights) != len(self.parts):
            raise ConfigError(
                f"a sum of {len(self.parts)} kernels has {len(self.weights)} weights: give one for each part"
            )
        if not all(0 <= weight < math.inf for weight in self.weights) or not any(self.weights):
            raise ConfigError(
                f"weights of a sum of kernels are at least 0 and not all 0, not {list(self.weights)}: a negative one makes no kernel"
            )

    def map(self, function: Callable[[Any], Any]) -> KernelSum:
        """See `Combination`."""
        return KernelSum(tuple(_mapped(part, function) for part in self.parts), self.weights)

    def _joined(self, values: list[Any], add: Callable[..., Any], multiply: Callable[..., Any]) -> Any:
        return add(self.weights, values)

    def describe(self, leaf: Callable[[Any], Any]) -> dict[str, Any]:
        """See `Combination`."""
        return {**super().describe(leaf), "weights": list(self.weights)}

    def _written(self, parts: list[str]) -> str:
        return " + ".join(f"{weight:.4g} {part}" for weight, part in zip(self.weights, parts, strict=True))


@dataclass(frozen=True)
class KernelProduct(Combination):
    """The product of kernels, entry by entry; a kernel again (Schur).

    The NNGP is the product of the NNGPs, the covariance of the product of independent outputs. What is called NTK is the product
    of the NTK matrices: a kernel for regression, and not the tangent kernel of a network whose outputs are multiplied, which would be
    `T1 K2 + K1 T2`.

    Args:
        parts: kernels, sums and products among them.
    """

    kind: ClassVar[str] = "product"

    def map(self, function: Callable[[Any], Any]) -> KernelProduct:
        """See `Combination`."""
        return KernelProduct(tuple(_mapped(part, function) for part in self.parts))

    def _joined(self, values: list[Any], add: Callable[..., Any], multiply: Callable[..., Any]) -> Any:
        return multiply(values)

    def _written(self, parts: list[str]) -> str:
        return " x ".join(parts)


def _mapped(part: Any, function: Callable[[Any], Any]) -> Any:
    return part.map(function) if isinstance(part, Combination) else function(part)
