"""Joint evaluation of networks that share their first layers, such as several depths of one family."""

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
    """A place where shallower networks branch off the deepest one, which continues unchanged.

    `fold` evaluates the branches.

    Args:
        branches: layers of each shallower network from this place to its end.
    """

    branches: tuple[tuple[Layer, ...], ...]

    def outgoing(self, incoming: Signature) -> Signature:
        """Return the incoming signature, without its support."""
        for branch in self.branches:
            signatures(branch, incoming)
        return dataclasses.replace(incoming, support=())

    def needs(self, incoming: Signature, support: Support, *, own: bool) -> Support:
        """Return the classes that the deepest network or any branch needs."""
        needed = [support]
        for branch in self.branches:
            wanted: Support = ()
            entering = [incoming, *signatures(branch, incoming)][: len(branch)]
            for layer, before in zip(reversed(branch), reversed(entering), strict=True):
                wanted = layer.needs(before, wanted, own=own)
            needed.append(wanted)
        return union(needed)

    def keeps_classes(self, incoming: Signature, outgoing: Signature) -> bool:
        """Return whether the deepest network needs all classes of rows that the branches need."""
        return not incoming.spatial or incoming.support[0] == outgoing.support[0]

    def __call__(self, state: KernelState, outgoing: Signature) -> KernelState:
        """Raise an AssertionError, because `fold` evaluates taps itself."""
        raise AssertionError("fold follows the branches")


def share(networks: Sequence[tuple[Layer, ...]]) -> tuple[tuple[Layer, ...], tuple[int, ...]]:
    """Return one network with taps that evaluates several networks.

    Args:
        networks: layers of each network.

    Returns:
        The deepest network with its taps, and for each given network the index of its result. The results are ordered
        by the places of the taps; the result of the deepest network is the last.

    Raises:
        ConfigError: if a branch has a layer with per-image features, branches or repetitions, which is more than a
            readout.
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
