"""Converts the configuration's dataclasses to a Hydra schema, and a composed configuration to dataclasses."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from ntkpipe.cli.folder import config_folder
from ntkpipe.cli.parts import expanded
from ntkpipe.config import RunConfig, from_dict


def _mutable(cls: type, *, blank: bool = False) -> type:
    """Return a mutable copy of a frozen dataclass whose fields take any value.

    OmegaConf cannot merge frozen dataclasses. Hydra checks the names, and `from_dict` checks the types, with better
    messages.

    Args:
        cls: the dataclass.
        blank: whether to leave out the defaults.
    """
    hints = typing.get_type_hints(cls)
    fields = []
    for f in dataclasses.fields(cls):
        kind = _mutable(hints[f.name], blank=blank) if dataclasses.is_dataclass(hints[f.name]) else Any  # type: ignore[arg-type]
        if kind is not Any:
            default = dataclasses.field(default_factory=kind)  # type: ignore[arg-type]
        elif blank and typing.get_origin(hints[f.name]) is not dict:
            default = dataclasses.field(default=MISSING)
        elif f.default_factory is not dataclasses.MISSING:
            default = dataclasses.field(default_factory=f.default_factory)
        elif isinstance(f.default, tuple):
            default = dataclasses.field(default_factory=lambda value=f.default: list(value))
        else:
            default = dataclasses.field(default=f.default)
        fields.append((f.name, kind, default))
    return dataclasses.make_dataclass(cls.__name__, fields)


def register_schema(*, blank: bool) -> None:
    """Register the schema in Hydra under the name `schema`, which `conf/config.yaml` lists first.

    Args:
        blank: whether to leave out the defaults, which shows the settings that the user gave.
    """
    # `${conf:experiment/dense_512.json}` is a file in the configuration's folder, wherever that is installed.
    OmegaConf.register_new_resolver("conf", lambda name: str(config_folder() / name), replace=True)
    ConfigStore.instance().store(name="schema", node=_mutable(RunConfig, blank=blank))


def to_run_config(composed: DictConfig) -> RunConfig:
    """Return the configuration that Hydra composed over the blank schema, as a `RunConfig`."""
    given = OmegaConf.to_container(composed)
    assert isinstance(given, dict)
    for name in ("experiment", "hydra"):
        given.pop(name, None)
    filled = OmegaConf.create(_filled(given, _defaults(RunConfig)))  # settings may refer to others
    container = OmegaConf.to_container(filled, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    container["kernel"]["parts"] = expanded(container["kernel"]["parts"])
    return from_dict(RunConfig, typing.cast("dict[str, Any]", container))


def _defaults(cls: type) -> dict[str, Any]:
    """Return the defaults of all settings as written, before a dataclass derives one setting from others."""
    hints, found = typing.get_type_hints(cls), {}
    for f in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[f.name]):
            found[f.name] = _defaults(typing.cast("type", hints[f.name]))
        else:
            value = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
            found[f.name] = list(value) if isinstance(value, tuple) else value
    return found


def _filled(given: dict[Any, Any], defaults: dict[str, Any]) -> dict[Any, Any]:
    """Return the given settings, completed by the defaults."""
    made = {**defaults, **{name: value for name, value in given.items() if value != MISSING}}
    groups = (name for name, value in defaults.items() if isinstance(value, dict) and isinstance(given.get(name), dict))
    return made | {name: _filled(given[name], defaults[name]) for name in groups}
