"""Convolutions: means of covariances over filter taps (arXiv:1810.05148, arXiv:1904.11955)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from itertools import product

import jax.numpy as jnp

from ntkpipe.errors import ConfigError
from ntkpipe.kernels import layout
from ntkpipe.kernels.apart import Apart, joined, with_bias
from ntkpipe.kernels.geometry import AnyWindow, GridWindow, PairedWindow, Support, Window, paired_window, windows_along
from ntkpipe.kernels.layers.linear import affine, own_gradients
from ntkpipe.kernels.state import Array, KernelState, Pointwise, Signature


def moved(incoming: Signature, windows: tuple[Window, AnyWindow]) -> Signature:
    """Return the signature after sliding windows over an image, with the number of channels unchanged."""
    rows, columns = windows
    grid = tuple(w.out for w in columns.windows) if isinstance(columns, GridWindow) else ()
    return dataclasses.replace(incoming, spatial=(rows.out, columns.out), support=(), grid=grid)


def require_plane(incoming: Signature) -> None:
    """Raise `ConfigError` if the input is a volume."""
    if incoming.grid:
        raise ConfigError(f"acts on images and sequences, not on volumes, and these have shape {list(incoming.shape)}")


@dataclass(frozen=True)
class Conv(Pointwise):
    """A convolution with independent normal filters: `Dense` with K replaced by its mean over the filter taps.

    Both images are shifted equally. The sum over taps is always divided by the size of the filter, also at the edges.
    In the `standard` parameterisation the fan-in is channels times filter taps.

    Args:
        features: number of output channels, which is the fan-in of the next layer.
        filter: height and width of the filter; depth, height and width for volumes.
        strides: in the same order as `filter`.
        padding: `SAME`, `VALID` or `CIRCULAR`.
        w_std: standard deviation of the weights.
        b_std: standard deviation of the bias; 0.0 means a trainable bias that starts at zero, None means no bias.
        parameterization: `ntk` or `standard`.
    """

    features: int
    filter: tuple[int, ...]
    strides: tuple[int, ...]
    padding: str
    w_std: float
    b_std: float | None
    parameterization: str

    is_linear = True

    def _windows(self, incoming: Signature) -> tuple[Window, AnyWindow]:
        return windows_along(incoming.spatial, incoming.grid, self.filter, self.strides, self.padding)

    def _paired(self, incoming: Signature, support: Support) -> tuple[PairedWindow, ...]:
        windows = self._windows(incoming)
        return tuple(paired_window(w, True, classes) for w, classes in zip(windows, support, strict=True))

    def outgoing(self, incoming: Signature) -> Signature:
        """Return the signature after the layer: Gaussian, with this layer's channels."""
        if len(incoming.spatial) != 2:
            raise ConfigError("acts on images [height, width, channels], but activations are flat here")
        made = moved(incoming, self._windows(incoming))
        return dataclasses.replace(made, features=self.features, is_gaussian=True)

    def needs(self, incoming: Signature, support: Support, *, own: bool) -> Support:
        """Return the incoming classes that the outgoing classes are shifted from."""
        del own
        return tuple(p.incoming for p in self._paired(incoming, support))

    def keeps_classes(self, incoming: Signature, outgoing: Signature) -> bool:
        """Return True unless a stride does not divide the axis."""
        return self._paired(incoming, outgoing.support)[0].keeps_classes

    def apart(self, before: Apart, incoming: Signature) -> Apart:
        """Return the bounds after the mean over filter taps."""
        windows = self._windows(incoming)
        under = [layout.under_tap(*both) for both in product(*([(w, tap) for tap in range(w.size)] for w in windows))]
        shifts = Apart(*(jnp.stack([shift(part) for shift in under]) for part in before))
        return with_bias(joined(shifts).times(self.w_std**2 / len(under)), (self.b_std or 0.0) ** 2)

    def __call__(self, state: KernelState, outgoing: Signature) -> KernelState:
        """Average both kernels over the taps, scale and shift them, and add this layer's own gradients to the NTK."""
        taps = math.prod(self.filter)
        total, *of_ntk = self._summed(state, outgoing)
        nngp = affine(total, self.w_std**2 / taps, self.b_std)
        ntk = own_gradients(self, nngp, total * float(state.signature.features))
        if of_ntk:
            ntk = ntk + of_ntk[0] * (self.w_std**2 / taps)
        return state.replace(nngp=nngp, ntk=ntk, signature=outgoing)

    def _summed(self, state: KernelState, outgoing: Signature) -> list[Array]:
        """Return the sums of both kernels over the filter taps (of the NNGP alone if there is no NTK).

        The sum is separable: first along rows, then along columns, which takes 3 + 3 terms instead of 9. The direct sum
        is used where its 9 terms cost less than writing and reading the intermediate result.
        """
        rows, cols = self._paired(state.signature, outgoing.support)
        arrays = [state.nngp] if state.ntk is None else [state.nngp, state.ntk]
        if self.filter == (1, 1):
            return [self._along_both(state, x, rows, cols) for x in arrays]
        arrays = state.fusion.settle(*arrays)
        if rows.keeps_classes and cols.keeps_classes and len(rows.taps) * len(cols.taps) <= state.fusion.direct_taps:
            return [layout.slide(x, rows, cols, state.classes_at_hand) for x in arrays]
        return [self._along_both(state, x, rows, cols) for x in arrays]

    def _along_both(self, state: KernelState, x: Array, rows: PairedWindow, cols: PairedWindow) -> Array:

        def along_rows(x: Array) -> Array:
            slid = rows.keeps_classes
            x = layout.slide_rows(x, rows, state.classes_at_hand) if slid else layout.gather_rows(x, rows)
            return layout.pad_columns(x, cols) if cols.slides else x

        x = layout.pad_rows(x, rows) if rows.keeps_classes else x
        x = along_rows(x) if self.filter == (1, 1) else state.fusion(along_rows, x)
        return layout.slide_columns(x, cols) if cols.slides else layout.gather_columns(x, cols)
