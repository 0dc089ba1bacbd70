"""Parallel branches that are concatenated or multiplied."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ntkpipe.kernels.apart import Apart, joined, multiplied, stacked
from ntkpipe.kernels.layers.residual import Branching
from ntkpipe.kernels.state import Array, KernelState, Signature


@dataclass(frozen=True)
class FanInConcat(Branching):
    """Concatenate the channels of the branches: both kernels are means over the branches, weighted by their channels.

    A covariance is a mean over channels, so the branches need not be independent or Gaussian. Channels of different
    branches generally have different variances. The result is then not Gaussian: put nonlinearities inside the
    branches.

    Args:
        branches: one sequence of layers per branch.
        fractions: the fraction of channels of each branch, with sum 1; None takes them from the branches' features.
    """

    fractions: tuple[float, ...] | None

    verb: ClassVar[str] = "puts side by side"

    def outgoing(self, incoming: Signature) -> Signature:
        """Return the signature after the layer, with the features of all branches together."""
        ends = self.ends(incoming)
        features = sum(end.features for end in ends)
        return dataclasses.replace(ends[0], features=features, is_gaussian=len(ends) == 1 and ends[0].is_gaussian)

    def shares(self, features: Sequence[int]) -> tuple[float, ...]:
        """Return the fraction of channels of each branch.

        Args:
            features: number of features at the end of each branch.
        """
        if self.fractions is not None:
            return self.fractions
        return tuple(n / sum(features) for n in features)

    def join(self, ends: Sequence[KernelState], outgoing: Signature) -> KernelState:
        """Return the weighted means of both kernels."""
        shares = self.shares([end.signature.features for end in ends])
        ntk: Array | None = None
        for share, end in zip(shares, ends, strict=True):
            if end.ntk is not None:
                ntk = end.ntk * share if ntk is None else ntk + end.ntk * share
        nngp = ends[0].nngp * shares[0]
        for share, end in zip(shares[1:], ends[1:], strict=True):
            nngp = nngp + end.nngp * share
        return ends[0].replace(nngp=nngp, ntk=ntk, signature=outgoing)

    def join_apart(self, ends: Sequence[Apart], features: Sequence[int]) -> Apart:
        """Return the bounds of the weighted mean, which behaves like a sum of independent activations."""
        shares = self.shares(features)
        return joined(stacked([end.times(share) for share, end in zip(shares, ends, strict=True)]))


@dataclass(frozen=True)
class FanInProduct(Branching):
    """Multiply the branches channel by channel: K is the product of their kernels, and T follows by the product rule.

    This holds if the outputs of the branches are independent: at most one branch may have no weights of its own.

    Args:
        branches: one sequence of layers per branch.
    """

    verb: ClassVar[str] = "multiplies"

    def outgoing(self, incoming: Signature) -> Signature:
        """Return the common signature of the branches; a product of several is not Gaussian."""
        ends = self.ends(incoming)
        self.require_equal_features(ends)
        self.require_independence()
        return dataclasses.replace(ends[0], is_gaussian=len(ends) == 1 and ends[0].is_gaussian)

    def join(self, ends: Sequence[KernelState], outgoing: Signature) -> KernelState:
        """Return the products of the kernels: K K' and T K' + K T'."""
        nngp, ntk = ends[0].nngp, ends[0].ntk
        for end in ends[1:]:
            parts = [part for part in (_times(ntk, end.nngp), _times(end.ntk, nngp)) if part is not None]
            ntk = parts[0] + parts[1] if len(parts) == 2 else parts[0] if parts else None
            nngp = nngp * end.nngp
        return ends[0].replace(nngp=nngp, ntk=ntk, signature=outgoing)

    def join_apart(self, ends: Sequence[Apart], features: Sequence[int]) -> Apart:
        """Return the bounds of a product of independent activations."""
        del features
        made = ends[0]
        for end in ends[1:]:
            made = multiplied(made, end)
        return made


def _times(one: Array | None, other: Array) -> Array | None:
    return None if one is None else one * other
