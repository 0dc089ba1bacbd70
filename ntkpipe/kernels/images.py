"""Conversion of arrays to the standard layout of images, for the command line and for Python."""

from __future__ import annotations

from typing import Any

from ntkpipe.errors import ConfigError, DataError

LAYOUTS = ("NHWC", "NCHW", "NLC", "NCL", "NDHWC", "NCDHW")
"""Orders of the axes. `NHWC` is images, height, width, channels; `NCHW` has the channels first, as in PyTorch. `NLC`
and `NCL` are sequences, which are treated as images of width 1. `NDHWC` and `NCDHW` are volumes.
"""

# Largest number of channels of ordinary images: gray, gray and alpha, RGB, RGBA.
_CHANNELS = 4


def as_images(name: str, x: Any, layout: str | None) -> Any:
    """Return an array in the standard layout, as a view if possible.

    Args:
        name: name of the array, for messages.
        x: `(n, features)`, gray images `(n, height, width)`, images with four axes in the order of `layout`, volumes
            with five axes, or sequences with three axes, which need `layout`.
        layout: one of `LAYOUTS`. None means `NHWC`, and a shape that looks like another layout is an error.

    Returns:
        `(n, features)`, `(n, height, width, channels)` or `(n, depth, height, width, channels)`.

    Raises:
        ConfigError: if `layout` is unknown.
        DataError: if the shape is not one of these, or looks like another layout and `layout` is None.
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


def check_blocks(x1: Any, x2: Any) -> None:
    """Check that two blocks of images in the standard layout can be paired; `x2` may be None.

    Raises:
        DataError: if they are not float32 or float64, hold no images, or disagree in shape or dtype.
    """
    for name, x in (("x1", x1), ("x2", x1 if x2 is None else x2)):
        if x.dtype not in ("float32", "float64"):
            raise DataError(f"{name} has dtype {x.dtype}: convert it to float32 or float64")
        if x.ndim < 2 or x.shape[0] < 1:
            raise DataError(f"{name} has shape {x.shape}: it must be (n, height, width, channels)")
    check_agreement(x1, x2)


def check_agreement(x1: Any, x2: Any) -> None:
    """Check that two blocks of images have the same shape of a point and the same dtype; `x2` may be None.

    Raises:
        DataError: if they disagree.
    """
    if x2 is not None and (x1.shape[1:] != x2.shape[1:] or x1.dtype != x2.dtype):
        raise DataError(
            f"x1 and x2 must agree: points of shape {x1.shape[1:]} {x1.dtype} and {x2.shape[1:]} {x2.dtype}"
        )


def as_planes(x: Any) -> Any:
    """Return volumes `(n, depth, height, width, channels)` as `(n, depth, height * width, channels)`, images
    unchanged.
    """
    return x.reshape(*x.shape[:2], -1, x.shape[4]) if x.ndim == 5 else x
