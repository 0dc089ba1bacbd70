"""Parameters of the peer in the form that layers take here."""

from __future__ import annotations

import enum
import numbers
from collections.abc import Sequence
from typing import Any

from ntkpipe.errors import ConfigError


class Padding(enum.Enum):
    """Of convolutions and pools; its names may be given as text too."""

    CIRCULAR = "CIRCULAR"
    SAME = "SAME"
    VALID = "VALID"


class AttentionMechanism(enum.Enum):
    """What attention makes of products of keys and queries; its names may be given as text too."""

    SOFTMAX = "SOFTMAX"
    IDENTITY = "IDENTITY"
    ABS = "ABS"
    RELU = "RELU"


class PositionalEmbedding(enum.Enum):
    """Of attention; its names may be given as text too."""

    NONE = "NONE"
    SUM = "SUM"
    CONCAT = "CONCAT"


def whole(name: str, value: Any, least: int) -> int:
    """A whole number, of Python, NumPy or JAX, as Python's own."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ConfigError(f"{name}={value!r} must be a whole number, at least {least}")
    return int(value)


def number(value: Any) -> Any:
    """Numbers of NumPy and JAX as Python's own; what is none is for the layer to refuse."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if hasattr(value, "__float__") else value


def name_of(value: Any) -> Any:
    """The name of an enumeration's member, or a text in capitals."""
    return value.name if isinstance(value, enum.Enum) else value.upper() if isinstance(value, str) else value


def pair(name: str, value: Any, default: Sequence[int] | None = None) -> list[int]:
    """Height and width."""
    value = default if value is None else value
    if not isinstance(value, Sequence) or len(value) != 2:
        raise ConfigError(
            f"{name}={value!r} must have two numbers: images have height and width here. Give sequences as images of height 1, "
            "(n, 1, length, channels), with filters (1, k)"
        )
    return [number(v) for v in value]


def require_usual_axes(batch_axis: int = 0, channel_axis: int = -1) -> None:
    """Refuse axes in another order than here."""
    if batch_axis != 0 or channel_axis not in (-1, 3):
        raise ConfigError(
            f"batch_axis={batch_axis}, channel_axis={channel_axis}: arrays are (n, height, width, channels) or (n, features) here; "
            "transpose them, or give layout='NCHW' where the network is called"
        )


def _require_usual_scale(s: Sequence[int]) -> None:
    if tuple(s) != (1, 1):
        raise ConfigError(f"s={s!r}: width scales of the standard parameterization are always (1, 1) here")


def weights(w_std: float, b_std: float | None, parameterization: str, s: Sequence[int]) -> dict[str, Any]:
    """Parameters of a layer with weights."""
    _require_usual_scale(s)
    kind = parameterization.lower() if isinstance(parameterization, str) else parameterization
    return {"w_std": number(w_std), "b_std": number(b_std), "parameterization": kind}
