"""The one meaning of arrays of images, for the command line and Python alike."""

from __future__ import annotations

from typing import Any

from ntkpipe.errors import ConfigError, DataError

LAYOUTS = ("NHWC", "NCHW", "NLC", "NCL")
"""Order of the axes: images, height, width, channels; or with the channels first, as PyTorch has them. `NLC` and `NCL` are sequences of
a length and channels: images of that height, and of width 1."""

# More channels than an image has that was not made by a network: gray, gray and alpha, RGB, RGBA.
_CHANNELS = 4


def as_images(name: str, x: Any, layout: str | None) -> Any:
    """An array in the standard layout; a view where there is one.

    Args:
        name: of the array, for messages.
        x: `(n, features)`; `(n, height, width)`, gray images; four axes in the order of `layout`; or three axes of sequences, which only
            `layout` tells from gray images.
        layout: of `LAYOUTS`; None is `NHWC`, unless the shape looks like another one.

    Returns:
        `(n, features)` or `(n, height, width, channels)`.

    Raises:
        ConfigError: if `layout` is none.
        DataError: if the shape is none of these, or without a `layout` looks like another than it would be taken for.
    """
    if layout not in (None, *LAYOUTS):
        raise ConfigError(f"data.layout={layout!r} is not one of {', '.join(LAYOUTS)}")
    shape = tuple(int(size) for size in x.shape)
    if len(shape) == 5:
        raise DataError(
            f"{name} has shape {shape}: volumes and films have no kernel here. Take slices (n, height, width, channels) with the depth or "
            "the time among the channels, or give (n, features)"
        )
    if layout in ("NLC", "NCL"):
        if len(shape) != 3:
            raise DataError(f"{name} has shape {shape}, and layout={layout} is for sequences (n, length, channels)")
        return (x if layout == "NLC" else x.transpose(0, 2, 1))[:, :, None, :]
    if not 2 <= len(shape) <= 4:
        raise DataError(
            f"{name} has shape {shape}: it must be (n, height, width, channels), (n, height, width) or (n, features)"
        )
    if len(shape) == 2:
        return x
    if layout is None:
        _refuse_another(name, shape)
    if len(shape) == 3:
        return x[..., None]
    return x.transpose(0, 2, 3, 1) if layout == "NCHW" else x


def _refuse_another(name: str, shape: tuple[int, ...]) -> None:
    _, first, *middle, last = shape
    if len(shape) == 4 and first <= _CHANNELS < min(middle[0], last):
        raise DataError(
            f"{name} has shape {shape}, which looks like (n, channels, height, width): set data.layout=NCHW if it is (in Python "
            f"layout='NCHW'), or data.layout=NHWC if these are {first} x {middle[0]} pixels of {last} channels"
        )
    if len(shape) == 3 and min(first, last) <= _CHANNELS < max(first, last):
        raise DataError(
            f"{name} has shape {shape}. Three axes are gray images (n, height, width), and these would have {first} x {last} "
            "pixels: set data.layout=NHWC if they have (in Python layout='NHWC'). Sequences are data.layout=NLC (n, length, "
            "channels) or NCL; features are (n, features)"
        )
