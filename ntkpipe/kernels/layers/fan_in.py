"""Parallel branches side by side, and multiplied."""

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
    """The branches' channels side by side: both kernels are means of theirs, weighted by how many channels each has.

    Covariances are means over channels, so that branches need not be independent, nor Gaussian. Unless they are equal, channels
    of different branches have different variances: what comes out is not Gaussian, and a nonlinearity goes into each branch.

    Args:
        branches: a sequence of layers each.
        fractions: of the channels that each branch has, which sum to 1; None are those of the branches' features.
    """

    fractions: tuple[float, ...] | None

    verb: ClassVar[str] = "puts side by side"

    def outgoing(self, incoming: Signature) -> Signature:
        """As many features as all branches together."""
        ends = self.ends(incoming)
        features = sum(end.features for end in ends)
        return dataclasses.replace(ends[0], features=features, is_gaussian=len(ends) == 1 and ends[0].is_gaussian)

    def shares(self, features: Sequence[int]) -> tuple[float, ...]:
        """The fraction of each branch.

        Args:
            features: that each branch ends with.
        """
        if self.fractions is not None:
            return self.fractions
        return tuple(n / sum(features) for n in features)

    def join(self, ends: Sequence[KernelState], outgoing: Signature) -> KernelState:
        """The weighted means of both kernels."""
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
        """Channels of one pixel are like a sum of independent activations."""
        shares = self.shares(features)
        return joined(stacked([end.times(share) for share, end in zip(shares, ends, strict=True)]))


@dataclass(frozen=True)
class FanInProduct(Branching):
    """The branches multiplied, channel by channel: K is the product of theirs, and T follows by the product rule.

    Which holds if the branches' outputs are independent, that is, if at most one of them has no weights of its own.

    Args:
        branches: a sequence of layers each.
    """

    verb: ClassVar[str] = "multiplies"

    def outgoing(self, incoming: Signature) -> Signature:
        """What every branch ends with; a product is not Gaussian."""
        ends = self.ends(incoming)
        self.require_equal_features(ends)
        self.require_independence()
        return dataclasses.replace(ends[0], is_gaussian=len(ends) == 1 and ends[0].is_gaussian)

    def join(self, ends: Sequence[KernelState], outgoing: Signature) -> KernelState:
        """Factor by factor: K K', and T K' + K T'."""
        nngp, ntk = ends[0].nngp, ends[0].ntk
        for end in ends[1:]:
            parts = [part for part in (_times(ntk, end.nngp), _times(end.ntk, nngp)) if part is not None]
            ntk = parts[0] + parts[1] if len(parts) == 2 else parts[0] if parts else None
            nngp = nngp * end.nngp
        return ends[0].replace(nngp=nngp, ntk=ntk, signature=outgoing)

    def join_apart(self, ends: Sequence[Apart], features: Sequence[int]) -> Apart:
        """Of products of independent activations."""
        del features
        made = ends[0]
        for end in ends[1:]:
            made = multiplied(made, end)
        return made


def _times(one: Array | None, other: Array) -> Array | None:
    return None if one is None else one * other
