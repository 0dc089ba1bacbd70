"""The one meaning of arrays of images, for the command line and Python alike."""

from __future__ import annotations

from typing import Any

from ntkpipe.errors import ConfigError, DataError

LAYOUTS = ("NHWC", "NCHW", "NLC", "NCL", "NDHWC", "NCDHW")
"""Order of the axes: images, height, width, channels; or with the channels first, as PyTorch has them. `NLC` and `NCL` are sequences of
a length and channels: images of that height, and of width 1. `NDHWC` and `NCDHW` are volumes."""

# More channels than an image has that was not made by a network: gray, gray and alpha, RGB, RGBA.
_CHANNELS = 4


def as_images(name: str, x: Any, layout: str | None) -> Any:
    """An array in the standard layout; a view where there is one.

    Args:
        name: of the array, for messages.
        x: `(n, features)`; `(n, height, width)`, gray images; four axes in the order of `layout`; five, volumes; or three axes of
            sequences, which only `layout` tells from gray images.
        layout: of `LAYOUTS`; None is `NHWC`, unless the shape looks like another one.

    Returns:
        `(n, features)`, `(n, height, width, channels)` or `(n, depth, height, width, channels)`.

    Raises:
        ConfigError: if `layout` is none.
        DataError: if the shape is none of these, or without a `layout` looks like another than it would be taken for.
    """
    if layout not in (None, *LAYOUTS):
        raise ConfigError(f"data.layout={layout!r} is not one of {', '.join(LAYOUTS)}")
    shape = tuple(int(size) for size in x.shape)
    if len(shape) == 5:
        return _as_volumes(name, x, shape, layout)
    if layout in ("NDHWC", "NCDHW"):
        raise DataError(
            f"{name} has shape {shape}, and layout={layout} is for volumes (n, depth, height, width, channels)"
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


def _as_volumes(name: str, x: Any, shape: tuple[int, ...], layout: str | None) -> Any:
    if layout is None and shape[1] <= _CHANNELS < min(shape[2:]):
        raise DataError(
            f"{name} has shape {shape}, which looks like (n, channels, depth, height, width): set data.layout=NCDHW if it is (in Python "
            f"layout='NCDHW'), or data.layout=NDHWC if these are volumes of {shape[4]} channels"
        )
    if layout not in (None, "NHWC", "NDHWC", "NCDHW"):
        raise DataError(f"{name} has shape {shape}: five axes are volumes, layout=NDHWC or NCDHW, and not {layout}")
    return x.transpose(0, 2, 3, 4, 1) if layout == "NCDHW" else x


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


def as_planes(x: Any) -> Any:
    """Volumes `(n, depth, height, width, channels)` as `(n, depth, height * width, channels)`; images as they are."""
    return x.reshape(*x.shape[:2], -1, x.shape[4]) if x.ndim == 5 else x
