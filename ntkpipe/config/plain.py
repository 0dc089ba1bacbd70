"""Converts the configuration to plain values and back."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any

from ntkpipe.config.run import RunConfig
from ntkpipe.config.values import converted, shown
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


def from_dict(cls: type, values: dict[str, Any], prefix: str = "") -> Any:
    """A frozen dataclass from plain values, including nested ones. Values get the types of their fields (`values.converted`).

    Args:
        cls: the dataclass.
        values: by field name.
        prefix: of the names of the settings, such as `predict.`, for messages.

    Raises:
        ConfigError: for an unknown field or an invalid value.
    """
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(f"unknown setting {', '.join(unknown)} in {cls.__name__}; known: {', '.join(hints)}")
    defaults = {field.name: _default(field) for field in dataclasses.fields(cls)}
    made = {}
    for name, value in values.items():
        hint, path = hints[name], prefix + name
        if not dataclasses.is_dataclass(hint):
            made[name] = converted(path, hint, value, defaults[name])
        elif isinstance(value, dict):
            made[name] = from_dict(hint, value, f"{path}.")  # type: ignore[arg-type]
        else:
            inside = ", ".join(f"{path}.{field.name}" for field in dataclasses.fields(hint))
            raise ConfigError(f"{path}={shown(value)} is a group of settings: set one of {inside}")
    try:
        return cls(**made)
    except TypeError as error:
        raise ConfigError(f"{cls.__name__}: {error}") from error


def _default(field: dataclasses.Field[Any]) -> Any:
    """The default of a field; None without a default or with a factory."""
    return None if field.default is dataclasses.MISSING else field.default
