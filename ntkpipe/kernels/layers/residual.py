"""Parallel branches, and their sum."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.apart import Apart, joined, stacked
from ntkpipe.kernels.geometry import Support, union
from ntkpipe.kernels.state import Composite, KernelState, Layer, Signature


@dataclass(frozen=True)
class Branching(Composite):
    """Base of layers that join parallel branches: `fold` evaluates the branches, and the layer joins their results.

    Args:
        branches: one sequence of layers per branch; `()` is the identity.
    """

    branches: tuple[tuple[Layer, ...], ...]

    @property
    def is_linear(self) -> bool:
        """Whether every branch has weights of its own."""
        return all(has_weights(branch) for branch in self.branches)

    def ends(self, incoming: Signature) -> list[Signature]:
        """Return the signature at the end of each branch: all flat, or all images of one shape.

        Raises:
            ConfigError: if the shapes differ.
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
                # Two images may have equal shapes for another input size; an image and flat activations never do.
                kind = ShapeError if end.spatial and first.spatial else ConfigError
                raise kind(f"{self.verb} activations of different shapes: {shapes}")
        return ends

    verb: ClassVar[str] = "joins"

    def require_equal_features(self, ends: Sequence[Signature]) -> None:
        """Raise `ConfigError` if the branches have different numbers of features."""
        for number, end in enumerate(ends):
            if end.features != ends[0].features:
                shapes = f"{ends[0].features} in branch 0 and {end.features} in branch {number}"
                raise ConfigError(f"{self.verb} activations with different numbers of features: {shapes}")

    def require_independence(self) -> None:
        """Raise `ConfigError` if more than one branch has no weights."""
        if sum(not has_weights(branch) for branch in self.branches) > 1:
            raise ConfigError(
                "needs independent branches: every branch but one must have a linear layer (conv, dense, attention)"
            )

    def needs(self, incoming: Signature, support: Support, *, own: bool) -> Support:
        """Return the union of the classes that the branches need."""
        needed = []
        for branch in self.branches:
            entering = [incoming, *signatures(branch, incoming)][: len(branch)]
            wanted = support
            for layer, before in zip(reversed(branch), reversed(entering), strict=True):
                wanted = layer.needs(before, wanted, own=own)
            needed.append(wanted)
        return union(needed)

    def join(self, ends: Sequence[KernelState], outgoing: Signature) -> KernelState:
        """Return the state after the branches are joined."""
        raise NotImplementedError

    def join_apart(self, ends: Sequence[Apart], features: Sequence[int]) -> Apart:
        """Return the bounds of nearly equal images after the branches are joined.

        Args:
            ends: the bounds at the end of each branch.
            features: number of features at the end of each branch.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class ResidualSum(Branching):
    """Sum of branches that start from the same activations (arXiv:1512.03385): K and T are sums over the branches.

    This holds if the outputs of the branches are Gaussian and independent: at most one branch may have no weights of
    its own.
    """

    verb: ClassVar[str] = "adds"

    def outgoing(self, incoming: Signature) -> Signature:
        """Return the common signature of the branches.

        Raises:
            ConfigError: if the branches differ in shape or features, are not Gaussian, or are not independent.
        """
        ends = self.ends(incoming)
        self.require_equal_features(ends)
        for number, end in enumerate(ends):
            if not end.is_gaussian:
                raise ConfigError(
                    f"needs Gaussian branches, but branch {number} ends with activations that are not Gaussian: end "
                    "it with a linear layer such as conv or dense, or put one before the sum"
                )
        self.require_independence()
        return ends[0]

    def join(self, ends: Sequence[KernelState], outgoing: Signature) -> KernelState:
        """Return the sums of both kernels over the branches."""
        ntk = None
        for end in ends:
            if end.ntk is not None:
                ntk = end.ntk if ntk is None else ntk + end.ntk
        nngp = ends[0].nngp
        for end in ends[1:]:
            nngp = nngp + end.nngp
        return ends[0].replace(nngp=nngp, ntk=ntk, signature=outgoing)

    def join_apart(self, ends: Sequence[Apart], features: Sequence[int]) -> Apart:
        """Return the bounds of a sum of independent activations."""
        del features
        return joined(stacked(ends))


class PlaceError(ConfigError):
    """A layer has no formula for what reaches it.

    Args:
        place: position of the layer, such as `3`, or of the branch, such as `branch 0`.
        cause: the error of the layer.
    """

    def __init__(self, place: int | str, cause: ConfigError) -> None:
        super().__init__(f"{place}: {cause}")
        self.place, self.cause = place, cause

    @property
    def root(self) -> ConfigError:
        """The error in the innermost branch."""
        return self.cause.root if isinstance(self.cause, PlaceError) else self.cause


class ShapeError(ConfigError):
    """Images of this shape have no formula, but images of another shape may have one."""


def signatures(layers: Sequence[Layer], incoming: Signature) -> list[Signature]:
    """Return the signature after each layer, with supports not yet known.

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
    """Return whether any layer has weights of its own."""
    return any(layer.is_linear for layer in layers)


def _shape(signature: Signature) -> list[int]:
    return list(signature.shape)
