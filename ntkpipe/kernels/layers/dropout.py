"""Dropout."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ntkpipe.kernels import layout
from ntkpipe.kernels.apart import Apart
from ntkpipe.kernels.geometry import Support, including_variances
from ntkpipe.kernels.state import Array, KernelState, Pointwise, Signature


@dataclass(frozen=True)
class Dropout(Pointwise):
    """Keep each activation with probability `rate` and divide it by `rate` (arXiv:1611.01232).

    The masks of different images and pixels are independent, so only the covariance of a pixel with itself grows. The
    kernel is then not a function of two images alone: an image that occurs twice in the data has two masks.

    Args:
        rate: probability of keeping an activation, above 0, at most 1.
    """

    rate: float

    def outgoing(self, incoming: Signature) -> Signature:
        """Return the signature after the layer, which is not Gaussian unless nothing is dropped."""
        return incoming if self.rate == 1.0 else dataclasses.replace(incoming, is_gaussian=False)

    def needs(self, incoming: Signature, support: Support, *, own: bool) -> Support:
        """Return the outgoing classes; an own block also needs class 0, which holds the variances."""
        return including_variances(incoming.spatial, support, own=own)

    def apart(self, before: Apart, incoming: Signature) -> Apart:
        """Return the bounds after the layer: variances grow, and equal images have different masks."""
        del incoming
        more = (1.0 / self.rate - 1.0) * before.norm
        return Apart(before.p / self.rate, before.q / self.rate, before.upper + more, before.lower + more)

    def __call__(self, state: KernelState, outgoing: Signature) -> KernelState:
        """Divide the covariance of each pixel with itself by the rate."""
        if not state.is_own:
            return state.replace(signature=outgoing)

        def scaled(x: Array) -> Array:
            if not outgoing.spatial:
                return x / self.rate
            return layout.with_variances(x, layout.variances(x) / self.rate)

        return state.map(scaled, outgoing)
