"""The configuration's dataclasses as a Hydra schema, and a composed configuration back as dataclasses."""

from __future__ import annotations

import contextlib
import dataclasses
import typing
from collections.abc import Iterator
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from ntkpipe.config import RunConfig, from_dict


def _mutable(cls: type, *, blank: bool = False) -> type:
    """A mutable twin of a frozen dataclass (OmegaConf cannot merge frozen ones), whose fields take any value.

    Names are Hydra's to check; types are `from_dict`'s, which knows what a setting is called and what may stand in its place.

    Args:
        cls: the dataclass.
        blank: without defaults.
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


def register_schema() -> None:
    """Make the schema known to Hydra under the name `schema`, which `conf/config.yaml` lists first."""
    ConfigStore.instance().store(name="schema", node=_mutable(RunConfig))


@contextlib.contextmanager
def blank_schema() -> Iterator[None]:
    """Within, `schema` knows the names and types of all settings and no defaults: what nobody sets stays missing."""
    ConfigStore.instance().store(name="schema", node=_mutable(RunConfig, blank=True))
    try:
        yield
    finally:
        register_schema()


def to_run_config(composed: DictConfig) -> RunConfig:
    """The composed Hydra configuration as the dataclasses that the pipeline knows."""
    container = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    container.pop("experiment", None)
    return from_dict(RunConfig, typing.cast("dict[str, Any]", container))
