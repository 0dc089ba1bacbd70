"""Repeated layers with new weights each time: the size of the compiled program does not depend on the depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from ntkpipe.kernels.geometry import Support, union
from ntkpipe.kernels.layers.residual import signatures
from ntkpipe.kernels.state import Composite, Layer, Signature


@dataclass(frozen=True)
class Repeat(Composite):
    """A list of layers applied `times` times in a row.

    Args:
        times: number of repetitions, at least 1.
        layers: the repeated layers, at least one.
    """

    times: int
    layers: tuple[Layer, ...]

    @property
    def is_linear(self) -> bool:
        """Whether any of its layers has weights."""
        return any(layer.is_linear for layer in self.layers)

    def outgoing(self, incoming: Signature) -> Signature:
        """Return the signature after the last repetition."""
        return passes(self, replace(incoming, support=())).last

    def needs(self, incoming: Signature, support: Support, *, own: bool) -> Support:
        """Return the classes that all repetitions need, found from the last to the first."""
        made = passes(self, replace(incoming, support=()))
        for before, wanted in zip(reversed(made.first), reversed(made.wanted(support, own=own)), strict=True):
            support = needed(self.layers, before, wanted, own=own)
        return support


class Passes(NamedTuple):
    """The repetitions, grouped by their incoming signature.

    Args:
        layer: the repeated layers.
        first: incoming signatures of the first repetitions, until the signature no longer changes.
        last: the signature after the first repetitions, which every further repetition receives and returns.
    """

    layer: Repeat
    first: tuple[Signature, ...]
    last: Signature

    @property
    def more(self) -> int:
        """Number of repetitions after the first ones; their signatures are all equal."""
        return self.layer.times - len(self.first)

    def lasting(self, support: Support, *, own: bool) -> Support:
        """Return the classes that every further repetition receives and returns so that the last one returns
        `support`.
        """
        while self.more:
            before = needed(self.layer.layers, self.last, support, own=own)
            both = union([support, before]) if self.last.spatial else support
            if both == support:
                break
            support = both
        return support

    def wanted(self, support: Support, *, own: bool) -> list[Support]:
        """Return the classes that each of the first repetitions must return."""
        made = [self.lasting(support, own=own)]
        for before in reversed(self.first[1:]):
            made.insert(0, needed(self.layer.layers, before, made[0], own=own))
        return made


@lru_cache(maxsize=256)
def passes(layer: Repeat, incoming: Signature) -> Passes:
    """Group the repetitions of a layer whose input has the signature `incoming`, with its support not yet known.

    The first repetition is always separate, because there may be no neural tangent kernel before it.

    Raises:
        PlaceError: at the first layer that has no formula for what reaches it.
    """
    first = [incoming]
    while True:
        after = signatures(layer.layers, first[-1])[-1]
        if len(first) == layer.times or signatures(layer.layers, after)[-1] == after:
            return Passes(layer, tuple(first), after)
        first.append(after)


def needed(layers: Sequence[Layer], incoming: Signature, wanted: Support, *, own: bool) -> Support:
    """Return the classes that must enter a list of layers so that the classes `wanted` leave it."""
    entering = [incoming, *signatures(layers, incoming)][: len(layers)]
    for layer, before in zip(reversed(layers), reversed(entering), strict=True):
        wanted = layer.needs(before, wanted, own=own)
    return wanted
