"""The configuration's dataclasses as a Hydra schema, and a composed configuration back as dataclasses."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from ntkpipe.config import RunConfig, from_dict


def _omegaconf_type(annotation: Any) -> Any:
    """OmegaConf's spelling of a type: variadic tuples become lists."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple:
        return list[_omegaconf_type(arguments[0])]  # type: ignore[misc]
    if origin in (types.UnionType, typing.Union):
        inner = [a for a in arguments if a is not type(None)]
        return typing.Optional[_omegaconf_type(inner[0])]  # noqa: UP045 - OmegaConf wants typing.Optional
    if dataclasses.is_dataclass(annotation):
        return _mutable(annotation)  # type: ignore[arg-type]
    return annotation


def _mutable(cls: type) -> type:
    """A mutable twin of a frozen dataclass: OmegaConf cannot merge frozen ones."""
    hints = typing.get_type_hints(cls)
    fields = []
    for f in dataclasses.fields(cls):
        kind = _omegaconf_type(hints[f.name])
        if dataclasses.is_dataclass(kind):
            default = dataclasses.field(default_factory=kind)  # type: ignore[arg-type]
        elif f.default_factory is not dataclasses.MISSING:
            default = dataclasses.field(default_factory=f.default_factory)
        elif isinstance(f.default, tuple):
            default = dataclasses.field(default_factory=lambda value=f.default: list(value))
        else:
            default = dataclasses.field(default=f.default)
        fields.append((f.name, kind, default))
    return dataclasses.make_dataclass(cls.__name__, fields)


def register_schema() -> None:
    """Make the schema known to Hydra under the name `schema`, which `conf/config.yaml` lists first."""
    ConfigStore.instance().store(name="schema", node=_mutable(RunConfig))


def to_run_config(composed: DictConfig) -> RunConfig:
    """The composed Hydra configuration as the dataclasses that the pipeline knows."""
    container = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    container.pop("experiment", None)
    return from_dict(RunConfig, typing.cast("dict[str, Any]", container))
