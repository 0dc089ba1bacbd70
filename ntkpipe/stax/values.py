"""Converts parameters of neural-tangents to those of the layers here."""

from __future__ import annotations

import enum
import numbers
from collections.abc import Sequence
from typing import Any

from ntkpipe.errors import ConfigError


class Padding(enum.Enum):
    """Padding of convolutions and pools; its names may also be given as text."""

    CIRCULAR = "CIRCULAR"
    SAME = "SAME"
    VALID = "VALID"


class AttentionMechanism(enum.Enum):
    """The function of products of keys and queries in attention; its names may also be given as text."""

    SOFTMAX = "SOFTMAX"
    IDENTITY = "IDENTITY"
    ABS = "ABS"
    RELU = "RELU"


class PositionalEmbedding(enum.Enum):
    """Positional embedding of attention; its names may also be given as text."""

    NONE = "NONE"
    SUM = "SUM"
    CONCAT = "CONCAT"


def whole(name: str, value: Any, least: int) -> int:
    """Return a whole number of Python, NumPy or JAX as an `int`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ConfigError(f"{name}={value!r} must be a whole number, at least {least}")
    return int(value)


def number(value: Any) -> Any:
    """Return a number of NumPy or JAX as a Python number. Other values are returned unchanged and fail in the layer."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if hasattr(value, "__float__") else value


def name_of(value: Any) -> Any:
    """Return the name of a member of an enumeration, or a text in capitals."""
    return value.name if isinstance(value, enum.Enum) else value.upper() if isinstance(value, str) else value


def pair(name: str, value: Any, default: Sequence[int] | None = None) -> list[int]:
    """Return a height and a width."""
    value = default if value is None else value
    if not isinstance(value, Sequence) or len(value) != 2:
        raise ConfigError(
            f"{name}={value!r} must have two numbers, for height and width. Give sequences as images of height 1, (n, "
            "1, length, channels), with filters (1, k)"
        )
    return [number(v) for v in value]


def require_usual_axes(batch_axis: int = 0, channel_axis: int = -1) -> None:
    """Raise `ConfigError` for other orders of axes."""
    if batch_axis != 0 or channel_axis not in (-1, 3):
        raise ConfigError(
            f"batch_axis={batch_axis}, channel_axis={channel_axis} are not supported: arrays must be (n, height, "
            "width, channels) or (n, features). Transpose them, or give layout='NCHW' when you call the network"
        )


def _require_usual_scale(s: Sequence[int]) -> None:
    if tuple(s) != (1, 1):
        raise ConfigError(
            f"s={s!r} is not supported: width scales of the standard parameterization are always (1, 1) here"
        )


def weights(w_std: float, b_std: float | None, parameterization: str, s: Sequence[int]) -> dict[str, Any]:
    """Return the parameters of a layer with weights."""
    _require_usual_scale(s)
    kind = parameterization.lower() if isinstance(parameterization, str) else parameterization
    return {"w_std": number(w_std), "b_std": number(b_std), "parameterization": kind}
