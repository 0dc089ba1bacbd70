"""The same layers many times over, with weights of their own each time: networks of any depth in a program of one size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

from ntkpipe.kernels.geometry import Support, union
from ntkpipe.kernels.layers.residual import signatures
from ntkpipe.kernels.state import FeatureScope, KernelState, Layer, Signature


@dataclass(frozen=True)
class Repeat:
    """Some layers, `times` times one after another. `fold` goes through them; nothing is left to do for the layer itself.

    Args:
        times: at least 1.
        layers: what is repeated, at least one layer.
    """

    times: int
    layers: tuple[Layer, ...]

    feature_scope: ClassVar[FeatureScope] = "nothing"  # its layers may

    @property
    def is_linear(self) -> bool:
        """It has weights of its own."""
        return any(layer.is_linear for layer in self.layers)

    def outgoing(self, incoming: Signature) -> Signature:
        """What the last repetition ends with."""
        return passes(self, replace(incoming, support=())).last

    def needs(self, incoming: Signature, support: Support, *, own: bool) -> Support:
        """What all repetitions need, from the last back to the first."""
        made = passes(self, replace(incoming, support=()))
        for before, wanted in zip(reversed(made.first), reversed(made.wanted(support, own=own)), strict=True):
            support = needed(self.layers, before, wanted, own=own)
        return support

    def keeps_classes(self, incoming: Signature, outgoing: Signature) -> bool:
        """Left to the steps of its layers."""
        del incoming, outgoing
        return True

    def image_features(self, own: KernelState) -> Any:
        """Left to its layers."""
        del own

    def apart(self, before: Any, incoming: Signature) -> Any:
        """Left to its layers."""
        del before, incoming

    def __call__(self, state: KernelState, outgoing: Signature) -> KernelState:
        """Never called: see `fold`."""
        raise AssertionError("fold repeats the layers")


class Passes(NamedTuple):
    """Repetitions by what comes into them.

    Args:
        layer: what is repeated.
        first: what comes into the first repetitions, one by one, until it is the same each time.
        last: what goes out of all of them, and comes into every further one.
    """

    layer: Repeat
    first: tuple[Signature, ...]
    last: Signature

    @property
    def more(self) -> int:
        """Repetitions after the first ones, which are all alike."""
        return self.layer.times - len(self.first)

    def lasting(self, support: Support, *, own: bool) -> Support:
        """Classes that all further repetitions have before and after them, so that `support` goes out of the last."""
        while self.more:
            before = needed(self.layer.layers, self.last, support, own=own)
            both = union([support, before]) if self.last.spatial else support
            if both == support:
                break
            support = both
        return support

    def wanted(self, support: Support, *, own: bool) -> list[Support]:
        """Classes that must go out of each of the first repetitions."""
        made = [self.lasting(support, own=own)]
        for before in reversed(self.first[1:]):
            made.insert(0, needed(self.layer.layers, before, made[0], own=own))
        return made


@lru_cache(maxsize=256)
def passes(layer: Repeat, incoming: Signature) -> Passes:
    """The repetitions of a layer whose input is `incoming`, its support not yet known.

    At least one is taken by itself: before it there may be no neural tangent kernel yet.

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
    """The classes that must come into a list of layers for those of `wanted` to go out."""
    entering = [incoming, *signatures(layers, incoming)][: len(layers)]
    for layer, before in zip(reversed(layers), reversed(entering), strict=True):
        wanted = layer.needs(before, wanted, own=own)
    return wanted
