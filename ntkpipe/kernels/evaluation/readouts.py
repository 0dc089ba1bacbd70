"""Several networks that begin alike, in one evaluation: depths of one family share all but their readouts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.geometry import Support, union
from ntkpipe.kernels.layers.repeat import Repeat
from ntkpipe.kernels.layers.residual import Branching, signatures
from ntkpipe.kernels.state import KernelState, Layer, Pointwise, Signature


@dataclass(frozen=True)
class Tap(Pointwise):
    """A place at which shallower networks leave the deepest one; that goes on as if nothing was there. `fold` follows both.

    Args:
        branches: layers of each shallower network from here to its end.
    """

    branches: tuple[tuple[Layer, ...], ...]

    def outgoing(self, incoming: Signature) -> Signature:
        """What came in."""
        for branch in self.branches:
            signatures(branch, incoming)
        return dataclasses.replace(incoming, support=())

    def needs(self, incoming: Signature, support: Support, *, own: bool) -> Support:
        """What the deepest network or any other needs."""
        needed = [support]
        for branch in self.branches:
            wanted: Support = ()
            entering = [incoming, *signatures(branch, incoming)][: len(branch)]
            for layer, before in zip(reversed(branch), reversed(entering), strict=True):
                wanted = layer.needs(before, wanted, own=own)
            needed.append(wanted)
        return union(needed)

    def keeps_classes(self, incoming: Signature, outgoing: Signature) -> bool:
        """If the deepest network needs all the rows that any other does."""
        return not incoming.spatial or incoming.support[0] == outgoing.support[0]

    def __call__(self, state: KernelState, outgoing: Signature) -> KernelState:
        """Never called: see `fold`."""
        raise AssertionError("fold follows the branches")


def share(networks: Sequence[tuple[Layer, ...]]) -> tuple[tuple[Layer, ...], tuple[int, ...]]:
    """One network with taps that gives the kernels of several.

    Args:
        networks: layers of each.

    Returns:
        The deepest network with its taps, and for each network which of its results is that network's: results of taps come
        in their order along the deepest, its own last.

    Raises:
        ConfigError: if what leaves the deepest network is more than a readout: a layer there sees single images.
    """
    trunk = max(networks, key=len)
    leaving: dict[int, list[tuple[Layer, ...]]] = {}
    for layers in set(networks) - {trunk}:
        common = next(k for k in range(len(layers) + 1) if k == len(layers) or layers[k] != trunk[k])
        tail = layers[common:]
        if any(layer.feature_scope != "nothing" or isinstance(layer, Branching | Repeat) for layer in tail):
            raise ConfigError("networks share an evaluation only if they differ in depth and end with plain readouts")
        leaving.setdefault(common, []).append(tail)
    made: list[Layer] = []
    order: list[tuple[Layer, ...]] = []
    for k in range(len(trunk) + 1):
        if k in leaving:
            made.append(Tap(tuple(leaving[k])))
            order += [trunk[:k] + tail for tail in leaving[k]]
        made += trunk[k : k + 1]
    order.append(trunk)
    return tuple(made), tuple(order.index(layers) for layers in networks)
