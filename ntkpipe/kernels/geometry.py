"""Windows along one spatial axis, and the diagonals of a covariance that a network needs. Integers only.

A covariance of two images has two indices along each axis, `h` of the first image and `h'` of the second. It is divided
into *classes* `c = (h - h') mod n`: class c holds the two diagonals h - h' = c and h - h' = c - n, n entries in total.
Convolutions of stride 1 and nonlinearities never mix classes. A network without pooling therefore needs class 0 only:
O(P) entries per pair of images instead of O(P^2). A network with a stride s before pooling needs every s-th class. A
network whose last pooling window covers f pixels needs a band of 2f - 1 classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import numpy as np

from ntkpipe.errors import ConfigError

Classes = tuple[int, ...]
Support = tuple[Classes, ...]
"""Classes of every spatial axis, ascending; `()` for flat activations."""
Windows = tuple[tuple[int, int, str], ...]
"""Size, stride and padding of every window that a sequence has passed through."""


def every_class(extent: int) -> Classes:
    """Return all classes of an axis."""
    return tuple(range(extent))


def union(supports: Iterable[Support]) -> Support:
    """Return the union of the supports, axis by axis."""
    return tuple(tuple(sorted(set().union(*axis))) for axis in zip(*supports, strict=True))


def including_variances(spatial: tuple[int, ...], support: Support, *, own: bool) -> Support:
    """Return the support; in own blocks, class 0 of every axis is added."""
    return union([support, ((0,),) * len(spatial)]) if own else support


@dataclass(frozen=True)
class Window:
    """A window that slides along one axis.

    Output position o covers the input positions `stride * o - low + tap`, `0 <= tap < size`.

    Args:
        extent: size of the input.
        size: size of the window.
        stride: distance between windows.
        padding: `SAME` (zeros around, low half first), `VALID` (none) or `CIRCULAR` (wraps around).

    Raises:
        ConfigError: if no window fits.
    """

    extent: int
    size: int
    stride: int
    padding: str

    slides: ClassVar[bool] = True
    """Whether the positions under a tap are `stride` apart."""

    def __post_init__(self) -> None:
        if self.padding == "VALID" and self.size > self.extent:
            raise ConfigError(f"has a window of {self.size} pixels, but its input has {self.extent}: use padding SAME")

    @property
    def out(self) -> int:
        """Output positions."""
        if self.padding == "VALID":
            return (self.extent - self.size) // self.stride + 1
        return -(-self.extent // self.stride)

    @property
    def pads(self) -> tuple[int, int]:
        """Return how many positions the windows cover before and after the input; the second is negative if some are
        unused.
        """
        covered = (self.out - 1) * self.stride + self.size
        if self.padding == "VALID":
            return 0, covered - self.extent
        total = max(covered - self.extent, 0)
        return total // 2, covered - self.extent - total // 2

    def positions(self, tap: int) -> np.ndarray:
        """`(out,)` input positions under a tap: outside `0..extent` in the padding, wrapped if circular."""
        at = self.stride * np.arange(self.out) - self.pads[0] + tap
        return at % self.extent if self.padding == "CIRCULAR" else at

    def counts(self) -> np.ndarray:
        """`(out,)` how many positions of each window lie in the input."""
        return np.sum([self.inside(self.positions(tap)) for tap in range(self.size)], axis=0)

    def inside(self, at: np.ndarray) -> np.ndarray:
        """Which positions lie in the input."""
        return (at >= 0) & (at < self.extent)

    @property
    def is_exact(self) -> bool:
        """Whether output class C comes from input class `stride * C` only (for shared taps), all around the axis."""
        return self.stride * self.out == self.extent

    def sources(self, classes: Classes, tap: int, other: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the sources of the entries of output classes under tap `tap` of the first image and `other` of the
        second.

        Returns:
            Input classes, input positions and whether both positions lie in the input: `(len(classes), out)` each.
        """
        return _sources(self, classes, tap, other)


@dataclass(frozen=True)
class GridWindow:
    """A window along two axes of a volume, whose positions are counted as one axis, row after row.

    Both images of a covariance are shifted equally, so the classes of this axis are kept like those of a single axis.

    Args:
        windows: the windows along both axes.
    """

    windows: tuple[Window, Window]

    slides: ClassVar[bool] = True

    @property
    def extent(self) -> int:
        """Input positions."""
        return self.windows[0].extent * self.windows[1].extent

    @property
    def size(self) -> int:
        """Taps."""
        return self.windows[0].size * self.windows[1].size

    @property
    def out(self) -> int:
        """Output positions."""
        return self.windows[0].out * self.windows[1].out

    def positions(self, tap: int) -> np.ndarray:
        """`(out,)` input positions under a tap; -1 in the padding."""
        first, second = self.windows
        rows, columns = (w.positions(k) for w, k in zip(self.windows, divmod(tap, second.size), strict=True))
        inside = first.inside(rows)[:, None] & second.inside(columns)[None, :]
        return np.where(inside, rows[:, None] * second.extent + columns[None, :], -1).ravel()

    def inside(self, at: np.ndarray) -> np.ndarray:
        """Which positions lie in the input."""
        return at >= 0

    def counts(self) -> np.ndarray:
        """`(out,)` how many positions of each window lie in the input."""
        return np.multiply.outer(*(w.counts() for w in self.windows)).ravel()

    @property
    def is_exact(self) -> bool:
        """Output class C comes from input class C alone (of shared taps)."""
        return all(w.stride == 1 and w.is_exact and w.padding != "CIRCULAR" for w in self.windows)

    def sources(self, classes: Classes, tap: int, other: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `Window.sources`."""
        return _sources(self, classes, tap, other)


AnyWindow = Window | GridWindow


def windows_along(
    spatial: tuple[int, ...], grid: tuple[int, ...], size: Sequence[int], strides: Sequence[int], padding: str
) -> tuple[Window, AnyWindow]:
    """Return the windows along the rows and the columns of images or volumes.

    Args:
        spatial: rows and columns of images; depth, and height times width, of volumes.
        grid: height and width of volumes; `()` for images.
        size: size of the windows, two numbers for images and three for volumes.
        strides: strides, as many as sizes.
        padding: padding of all windows.

    Raises:
        ConfigError: if the number of sizes is wrong, or a window does not fit.
    """
    extents = (spatial[0], *grid) if grid else spatial
    if len(size) != len(extents):
        what = (
            "volumes and need three numbers, [depth, height, width]" if grid else "images and need two, [height, width]"
        )
        raise ConfigError(f"has windows of {len(size)} numbers, {list(size)}, but the inputs are {what}")
    first, *others = (Window(*axis, padding) for axis in zip(extents, size, strides, strict=True))
    return first, others[0] if len(others) == 1 else GridWindow((others[0], others[1]))


def _sources(window: AnyWindow, classes: Classes, tap: int, other: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    first = np.broadcast_to(np.arange(window.out), (len(classes), window.out))
    second = (first - np.array(classes, int).reshape(-1, 1)) % window.out
    one, two = window.positions(tap)[first], window.positions(other)[second]
    return (one - two) % window.extent, one, window.inside(one) & window.inside(two)


@dataclass(frozen=True)
class PairedWindow:
    """A window over both indices of one axis of a covariance.

    Args:
        window: the window along the axis.
        shared: whether both images are shifted equally (convolution); otherwise every pair of taps counts (pooling).
        outgoing: classes of the output that are needed.
    """

    window: AnyWindow
    shared: bool
    outgoing: Classes

    @cached_property
    def taps(self) -> tuple[tuple[int, int], ...]:
        """Pairs of taps of the first and the second image whose products are summed."""
        size = range(self.window.size)
        return tuple((a, b) for a in size for b in size if not self.shared or a == b)

    @cached_property
    def incoming(self) -> Classes:
        """Classes of the input that the outgoing classes need."""
        found: set[int] = set()
        for tap, other in self.taps:
            classes, _, inside = self.window.sources(self.outgoing, tap, other)
            found.update(int(c) for c in classes[inside])
        return tuple(sorted(found)) or (0,)

    @cached_property
    def slides(self) -> bool:
        """Whether classes are kept and the entries under a tap are a slice."""
        return self.keeps_classes and isinstance(self.window, Window)

    @cached_property
    def keeps_classes(self) -> bool:
        """Whether every output class comes from one input class, so classes can be processed one by one."""
        if not self.shared or not self.window.slides or not (self.window.is_exact or self.outgoing == (0,)):
            return False
        return len(self.incoming) == len(self.outgoing)


@lru_cache(maxsize=1024)
def paired_window(window: AnyWindow, shared: bool, outgoing: Classes) -> PairedWindow:
    """Return a cached `PairedWindow`, so its properties are computed once."""
    return PairedWindow(window, shared, outgoing)


def out_lengths(windows: Windows, lengths: Any) -> Any:
    """Return the lengths of sequences after windows, for NumPy and JAX arrays."""
    for size, stride, padding in windows:
        lengths = (lengths - size) // stride + 1 if padding == "VALID" else -(-lengths // stride)
    return lengths
