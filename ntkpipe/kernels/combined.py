"""Weighted sums and products of kernels, entry by entry."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ntkpipe.errors import ConfigError


@dataclass(frozen=True)
class Combination:
    """Base of sums and products. A part is anything that represents a kernel: an architecture, layers, tiles or an
    array.
    """

    parts: tuple[Any, ...]

    kind: ClassVar[str] = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        if not self.parts:
            raise ConfigError(f"a {self.kind} of kernels needs at least one part")

    def leaves(self) -> tuple[Any, ...]:
        """All parts that are not combinations, from left to right; a part that occurs twice is listed twice."""
        return tuple(self._leaves())

    def _leaves(self) -> Iterator[Any]:
        for part in self.parts:
            if isinstance(part, Combination):
                yield from part.leaves()
            else:
                yield part

    def map(self, function: Callable[[Any], Any]) -> Combination:
        """Return the same combination with `function` applied to every leaf."""
        raise NotImplementedError

    def reduce(
        self,
        leaf: Callable[[Any], Any],
        add: Callable[[Sequence[float], list[Any]], Any],
        multiply: Callable[[list[Any]], Any],
    ) -> Any:
        """Return a value of the whole combination, computed from values of the leaves.

        Args:
            leaf: returns the value of a leaf.
            add: returns the value of a sum from its weights and the values of its parts.
            multiply: returns the value of a product from the values of its parts.
        """
        values = [
            part.reduce(leaf, add, multiply) if isinstance(part, Combination) else leaf(part) for part in self.parts
        ]
        return self._joined(values, add, multiply)

    def _joined(self, values: list[Any], add: Callable[..., Any], multiply: Callable[..., Any]) -> Any:
        raise NotImplementedError

    def combine(self, leaf: Callable[[Any], np.ndarray]) -> np.ndarray:
        """Return the entries of the combined kernel in float64, from entries of the leaves, which all have one
        shape.
        """

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
        """Return a description for identities and reports; it is JSON-ready if the results of `leaf` are."""
        parts = [part.describe(leaf) if isinstance(part, Combination) else leaf(part) for part in self.parts]
        return {"kind": self.kind, "parts": parts}

    def write(self, leaf: Callable[[Any], str]) -> str:
        """Return the combination as readable text, such as `0.5 A + 0.5 B`."""

        def inner(part: Any) -> str:
            return f"({part.write(leaf)})" if isinstance(part, Combination) else leaf(part)

        return self._written([inner(part) for part in self.parts])

    def _written(self, parts: list[str]) -> str:
        raise NotImplementedError


@dataclass(frozen=True)
class KernelSum(Combination):
    """A weighted sum of kernels. NNGP and NTK are both summed.

    The sum is exact for independent networks f_i of any architectures that are trained together as `f = sum_i sqrt(w_i)
    f_i`: both kernels of f are the weighted sums of the kernels of the f_i. An average over depths is a sum with equal
    weights.

    Args:
        parts: the kernels, which may be sums and products themselves.
        weights: one weight per part, at least 0 and not all 0; None gives every part the weight `1 / len(parts)`.

    Raises:
        ConfigError: if there is no part, the number of weights differs from that of the parts, or weights are out of
            range.

    Example:
        >>> KernelSum(("a", "b")).weights
        (0.5, 0.5)
    """

    weights: tuple[float, ...] = field(default=None)  # type: ignore[assignment]  # set in __post_init__

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
            raise ConfigError(f"weights={list(self.weights)} of a sum of kernels must be at least 0 and not all 0")

    def map(self, function: Callable[[Any], Any]) -> KernelSum:
        """Return the same sum with `function` applied to every leaf."""
        return KernelSum(tuple(_mapped(part, function) for part in self.parts), self.weights)

    def _joined(self, values: list[Any], add: Callable[..., Any], multiply: Callable[..., Any]) -> Any:
        return add(self.weights, values)

    def describe(self, leaf: Callable[[Any], Any]) -> dict[str, Any]:
        """Return a description with the weights, see `Combination`."""
        return {**super().describe(leaf), "weights": list(self.weights)}

    def _written(self, parts: list[str]) -> str:
        return " + ".join(f"{weight:.4g} {part}" for weight, part in zip(self.weights, parts, strict=True))


@dataclass(frozen=True)
class KernelProduct(Combination):
    """The product of kernels, entry by entry, which is again a kernel (Schur's theorem).

    Its NNGP is the product of the NNGPs: the covariance of the product of independent outputs. Its NTK is the product
    of the NTKs. This is a valid kernel for regression, but not the tangent kernel of a network whose outputs are
    multiplied, which would be `T1 K2 + K1 T2`.

    Args:
        parts: the kernels, which may be sums and products themselves.
    """

    kind: ClassVar[str] = "product"

    def map(self, function: Callable[[Any], Any]) -> KernelProduct:
        """Return the same product with `function` applied to every leaf."""
        return KernelProduct(tuple(_mapped(part, function) for part in self.parts))

    def _joined(self, values: list[Any], add: Callable[..., Any], multiply: Callable[..., Any]) -> Any:
        return multiply(values)

    def _written(self, parts: list[str]) -> str:
        return " x ".join(parts)


def _mapped(part: Any, function: Callable[[Any], Any]) -> Any:
    return part.map(function) if isinstance(part, Combination) else function(part)
