"""Convolutions without weight sharing: every pixel has its own filter and bias (arXiv:1810.05148, section 5)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax.numpy as jnp

from ntkpipe.kernels.geometry import AnyWindow, Support, Window
from ntkpipe.kernels.layers.convolution import Conv, require_plane
from ntkpipe.kernels.state import Array, KernelState, Signature


@dataclass(frozen=True)
class ConvLocal(Conv):
    """A locally connected layer: covariances of equal pixels are those of `Conv`, and those of different pixels are
    0.
    """

    def _windows(self, incoming: Signature) -> tuple[Window, AnyWindow]:
        require_plane(incoming)
        return super()._windows(incoming)

    def needs(self, incoming: Signature, support: Support, *, own: bool) -> Support:
        """Return the classes that equal outgoing pixels need; different pixels need none."""
        return super().needs(incoming, _equal(support), own=own)

    def keeps_classes(self, incoming: Signature, outgoing: Signature) -> bool:
        """Return True if only equal pixels go out and `Conv` keeps the classes."""
        alone = outgoing.support[0] == (0,)
        return alone and super().keeps_classes(incoming, outgoing)

    def __call__(self, state: KernelState, outgoing: Signature) -> KernelState:
        """Convolve the covariances of equal pixels and set all others to zero."""
        equal = dataclasses.replace(outgoing, support=_equal(outgoing.support))
        made = super().__call__(state, equal)
        if outgoing.support == equal.support:
            return made
        (h, w), (rows, columns) = outgoing.spatial, outgoing.support

        def spread(x: Array) -> Array:
            zeros = jnp.zeros((len(rows), h, w, len(columns), x.shape[-1]), x.dtype)
            if 0 not in rows or 0 not in columns:
                return zeros
            return zeros.at[rows.index(0), :, :, columns.index(0)].set(x[0, :, :, 0])

        return made.map(spread, outgoing)


def _equal(support: Support) -> Support:
    return ((0,),) * len(support)
