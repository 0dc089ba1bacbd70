"""Resolves layers into steps, which know their signatures and the classes of covariances that later steps need."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from ntkpipe.kernels.evaluation.readouts import Tap
from ntkpipe.kernels.geometry import Support
from ntkpipe.kernels.layers.mask import Mask, MaskedSelfAttention
from ntkpipe.kernels.layers.repeat import Repeat, passes
from ntkpipe.kernels.layers.residual import Branching, signatures
from ntkpipe.kernels.state import Layer, Signature


@dataclass(frozen=True)
class Step:
    """A layer with the signatures of its place in the network.

    Args:
        layer: the layer.
        incoming: signature of its input, with its support.
        outgoing: signature of its output, with its support.
        branches: steps of each branch of a join or a tap. A repeat has one entry for each of its first repetitions and,
            if there are `more`, one entry for all others.
    """

    layer: Layer
    incoming: Signature
    outgoing: Signature
    branches: tuple[tuple[Step, ...], ...] = ()

    def entering(self, branch: Sequence[Step]) -> Signature:
        """Return the signature of a branch's input, with the classes that the branch needs."""
        return branch[0].incoming if branch else dataclasses.replace(self.incoming, support=self.outgoing.support)

    def leaving(self, branch: Sequence[Step]) -> Signature:
        """Return the signature of a branch's output."""
        return branch[-1].outgoing if branch else self.entering(branch)

    @property
    def keeps_classes(self) -> bool:
        """Whether the k-th outgoing class of rows depends only on the k-th incoming one."""
        if not self.layer.keeps_classes(self.incoming, self.outgoing):
            return False
        if not self.branches or not self.incoming.spatial:
            return True
        # All branches must receive the same classes. The branches of a tap need not keep them.
        rows = self.incoming.support[:1]
        same = all(self.entering(branch).support[:1] == rows for branch in self.branches)
        if isinstance(self.layer, Repeat):
            same = same and all(b[-1].outgoing.support[:1] == self.outgoing.support[:1] for b in self.branches)
        return same and (isinstance(self.layer, Tap) or all(step.keeps_classes for b in self.branches for step in b))

    @property
    def is_masked(self) -> bool:
        """Whether the step needs the lengths of sequences."""
        return isinstance(self.layer, Mask | MaskedSelfAttention) or any(
            step.is_masked for branch in self.branches for step in branch
        )

    @property
    def more(self) -> int:
        """Number of a repeat's repetitions that share the steps of the last branch; 0 for all other layers."""
        if not isinstance(self.layer, Repeat):
            return 0
        return passes(self.layer, dataclasses.replace(self.incoming, support=())).more

    @property
    def has_features(self) -> bool:
        """Whether the step needs per-image features."""
        return self.layer.feature_scope != "nothing" or any(
            step.has_features for branch in self.branches for step in branch
        )


def resolve(
    layers: Sequence[Layer], incoming: Signature, *, wanted: Support = (), own: bool = False
) -> tuple[Step, ...]:
    """Return the steps of a network or of a branch.

    Args:
        layers: layers in order.
        incoming: signature of the input, whose support is ignored.
        wanted: classes of the output that are needed.
        own: whether images are paired with themselves; features then need the variances as well.

    Raises:
        PlaceError: at the first layer that has no formula for its input.
    """
    after = signatures(layers, incoming)
    before = [incoming, *after][: len(layers)]
    steps: list[Step] = []
    for layer, entering, leaving in zip(reversed(layers), reversed(before), reversed(after), strict=True):
        leaving = dataclasses.replace(leaving, support=wanted)
        needed = layer.needs(entering, wanted, own=own)
        entering = dataclasses.replace(entering, support=needed)
        branches: tuple[tuple[Step, ...], ...] = ()
        if isinstance(layer, Branching):
            branches = tuple(resolve(branch, entering, wanted=wanted, own=own) for branch in layer.branches)
        elif isinstance(layer, Repeat):
            branches = _repetitions(layer, entering, wanted, own=own)
        elif isinstance(layer, Tap):
            branches = tuple(resolve(branch, entering, own=own) for branch in layer.branches)
        steps.insert(0, Step(layer, entering, leaving, branches))
        wanted = needed
    return tuple(steps)


def _repetitions(layer: Repeat, incoming: Signature, wanted: Support, *, own: bool) -> tuple[tuple[Step, ...], ...]:
    made = passes(layer, dataclasses.replace(incoming, support=()))
    each = zip(made.first, made.wanted(wanted, own=own), strict=True)
    first = tuple(resolve(layer.layers, before, wanted=after, own=own) for before, after in each)
    if not made.more:
        return first
    return (*first, resolve(layer.layers, made.last, wanted=made.lasting(wanted, own=own), own=own))


def with_features(layers: Sequence[Layer]) -> Sequence[Layer]:
    """Return the layers up to the last one that needs per-image features."""
    for end in range(len(layers), 0, -1):
        if _has_features(layers[end - 1]):
            return layers[:end]
    return ()


def _has_features(layer: Layer) -> bool:
    if isinstance(layer, Branching):
        return any(_has_features(inner) for branch in layer.branches for inner in branch)
    if isinstance(layer, Repeat):
        return any(_has_features(inner) for inner in layer.layers)
    return layer.feature_scope != "nothing"
