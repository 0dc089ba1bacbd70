"""The configuration as plain values, and back."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any

from ntkpipe.config.run import RunConfig
from ntkpipe.errors import ConfigError


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration as plain JSON-ready values; infinity becomes the string `inf`."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, float) and math.isinf(value):
            return "inf"
        return value

    return plain(dataclasses.asdict(config))


def from_dict(cls: type, values: dict[str, Any]) -> Any:
    """A frozen dataclass from plain values, nested ones included; lists become tuples, `"inf"` becomes infinity.

    Raises:
        ConfigError: on an unknown field, or a value that the dataclass refuses.
    """
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(f"unknown setting {', '.join(unknown)} in {cls.__name__}; known: {', '.join(hints)}")
    made = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            made[name] = from_dict(hint, value)  # type: ignore[arg-type]
        elif isinstance(value, list):
            made[name] = tuple(float("inf") if v == "inf" else v for v in value)
        else:
            made[name] = float("inf") if value == "inf" and hint is float else value
    try:
        return cls(**made)
    except TypeError as error:
        raise ConfigError(f"{cls.__name__}: {error}") from error
