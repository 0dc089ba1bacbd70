"""Parallel branches, and their sum."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.apart import Apart, joined, stacked
from ntkpipe.kernels.geometry import Support, union
from ntkpipe.kernels.state import FeatureScope, KernelState, Layer, Signature


@dataclass(frozen=True)
class Branching:
    """What joins of parallel branches have in common: `fold` follows the branches, and the layer says what becomes of their ends.

    Args:
        branches: a sequence of layers each; `()` is the identity.
    """

    branches: tuple[tuple[Layer, ...], ...]

    feature_scope: ClassVar[FeatureScope] = "nothing"  # its layers may

    @property
    def is_linear(self) -> bool:
        """Every branch has weights of its own."""
        return all(has_weights(branch) for branch in self.branches)

    def ends(self, incoming: Signature) -> list[Signature]:
        """What each branch ends with; images of one shape, or all flat.

        Raises:
            ConfigError: if they are of different shapes.
        """
        ends = []
        for number, branch in enumerate(self.branches):
            try:
                ends.append([incoming, *signatures(branch, incoming)][-1])
            except ConfigError as error:
                raise PlaceError(f"branch {number}", error) from None
        first = ends[0]
        for number, end in enumerate(ends):
            if end.shape[:-1] != first.shape[:-1]:
                shapes = f"{_shape(first)} in branch 0 and {_shape(end)} in branch {number}"
                # An image never is what flat activations are; but two images may agree that begin smaller.
                kind = ShapeError if end.spatial and first.spatial else ConfigError
                raise kind(f"{self.verb} activations of different shapes: {shapes}")
        return ends

    verb: ClassVar[str] = "joins"

    def require_equal_features(self, ends: Sequence[Signature]) -> None:
        """Refuse branches of different widths."""
        for number, end in enumerate(ends):
            if end.features != ends[0].features:
                shapes = f"{ends[0].features} in branch 0 and {end.features} in branch {number}"
                raise ConfigError(f"{self.verb} activations with different numbers of features: {shapes}")

    def require_independence(self) -> None:
        """Refuse two branches without weights."""
        if sum(not has_weights(branch) for branch in self.branches) > 1:
            raise ConfigError(
                "needs independent branches: at most one may be without a linear layer (conv, dense, attention) of its own"
            )

    def needs(self, incoming: Signature, support: Support, *, own: bool) -> Support:
        """What any branch needs."""
        needed = []
        for branch in self.branches:
            entering = [incoming, *signatures(branch, incoming)][: len(branch)]
            wanted = support
            for layer, before in zip(reversed(branch), reversed(entering), strict=True):
                wanted = layer.needs(before, wanted, own=own)
            needed.append(wanted)
        return union(needed)

    def keeps_classes(self, incoming: Signature, outgoing: Signature) -> bool:
        """Left to the steps of its branches."""
        del incoming, outgoing
        return True

    def image_features(self, own: KernelState) -> Any:
        """Left to the layers of its branches."""
        del own

    def apart(self, before: Any, incoming: Signature) -> Any:
        """Left to the layers of its branches."""
        del before, incoming

    def __call__(self, state: KernelState, outgoing: Signature) -> KernelState:
        """Never called: see `fold`."""
        raise AssertionError("fold joins the branches")

    def join(self, ends: Sequence[KernelState], outgoing: Signature) -> KernelState:
        """The state after the branches' ends have met."""
        raise NotImplementedError

    def join_apart(self, ends: Sequence[Apart], features: Sequence[int]) -> Apart:
        """How far apart images are then that nearly coincide.

        Args:
            ends: of each branch.
            features: that each branch ends with.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class ResidualSum(Branching):
    """The sum of branches that begin at the same activations (arXiv:1512.03385): K and T are the sums of theirs.

    Which holds if the branches' outputs are Gaussian and independent, that is, if at most one of them has no weights of
    its own.
    """

    verb: ClassVar[str] = "adds"

    def outgoing(self, incoming: Signature) -> Signature:
        """What every branch ends with."""
        ends = self.ends(incoming)
        self.require_equal_features(ends)
        for number, end in enumerate(ends):
            if not end.is_gaussian:
                raise ConfigError(
                    f"needs Gaussian branches, and branch {number} ends with activations that are not: end it with a linear "
                    "layer such as conv or dense, or put one before the sum"
                )
        self.require_independence()
        return ends[0]

    def join(self, ends: Sequence[KernelState], outgoing: Signature) -> KernelState:
        """The sums of both kernels."""
        ntk = None
        for end in ends:
            if end.ntk is not None:
                ntk = end.ntk if ntk is None else ntk + end.ntk
        nngp = ends[0].nngp
        for end in ends[1:]:
            nngp = nngp + end.nngp
        return ends[0].replace(nngp=nngp, ntk=ntk, signature=outgoing)

    def join_apart(self, ends: Sequence[Apart], features: Sequence[int]) -> Apart:
        """Of independent activations, summed."""
        del features
        return joined(stacked(ends))


class PlaceError(ConfigError):
    """A layer has no formula for what reaches it.

    Args:
        place: of the layer or branch, such as `3` or `branch 0`.
        cause: why.
    """

    def __init__(self, place: int | str, cause: ConfigError) -> None:
        super().__init__(f"{place}: {cause}")
        self.place, self.cause = place, cause

    @property
    def root(self) -> ConfigError:
        """The cause in the innermost branch."""
        return self.cause.root if isinstance(self.cause, PlaceError) else self.cause


class ShapeError(ConfigError):
    """Images of this shape have no formula, and those of another may."""


def signatures(layers: Sequence[Layer], incoming: Signature) -> list[Signature]:
    """What goes out of each layer, supports not yet known.

    Raises:
        PlaceError: at the first layer that has no formula for what reaches it.
    """
    after = []
    for index, layer in enumerate(layers):
        try:
            incoming = layer.outgoing(incoming)
        except ConfigError as error:
            raise PlaceError(index, error) from None
        after.append(incoming)
    return after


def has_weights(layers: Iterable[Layer]) -> bool:
    """Some layer has weights of its own."""
    return any(layer.is_linear for layer in layers)


def _shape(signature: Signature) -> list[int]:
    return list(signature.shape)
