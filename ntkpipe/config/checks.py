"""Checks of settings that several dataclasses share."""

from __future__ import annotations

import difflib
import math

from ntkpipe.errors import ConfigError


def choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raise a `ConfigError` unless the setting `name` has one of the allowed values."""
    if value not in allowed:
        close = difflib.get_close_matches(str(value), [str(one) for one in allowed], n=1)
        hint = f". Did you mean {name}={close[0]}?" if close else ""
        raise ConfigError(f"{name}={value!r} is not one of {', '.join(map(str, allowed))}{hint}")


def at_least(
    name: str, value: float | None, low: float, *, strict: bool = False, may_be_infinite: bool = False
) -> None:
    """Raise a `ConfigError` unless the setting `name` is None, or finite and at least (`strict`: above) `low`.

    `may_be_infinite` allows infinity.
    """
    if value is None:
        return
    if value == math.inf and not may_be_infinite:
        raise ConfigError(f"{name}=inf must be finite")
    if math.isnan(value) or value < low or (strict and value == low):
        raise ConfigError(f"{name}={value} must be {'above' if strict else 'at least'} {low}")
