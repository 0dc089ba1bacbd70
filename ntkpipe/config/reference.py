"""The type, the default and the documentation of every setting, for the help and the reference page."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ntkpipe.config.run import RunConfig
from ntkpipe.config.values import described, example, shown

# `name: text` or `one, another: text`. A line with eight or more spaces continues the text.
_ENTRY = re.compile(r"(?P<names>\w+(?:, \w+)*): (?P<text>.*)")


@dataclass(frozen=True)
class Setting:
    """One setting of a run.

    Args:
        name: dotted, such as `kernel.depth`.
        hint: its type.
        default: its default value.
        text: its meaning, in one paragraph.
    """

    name: str
    hint: Any
    default: Any
    text: str

    @property
    def group(self) -> str:
        """The group, such as `kernel` for `kernel.depth`; empty for a setting without a group."""
        return self.name.rpartition(".")[0]

    @property
    def takes(self) -> str:
        """The type in words."""
        return described(self.hint)

    @property
    def example(self) -> str:
        """A valid value."""
        return example(self.hint, self.default)

    def is_number(self) -> bool:
        """Whether its values are numbers or lists of numbers."""
        return bool({int, float} & set(_kinds(self.hint)))

    def is_list(self) -> bool:
        """Whether it takes several values."""
        return any(typing.get_origin(one) is tuple for one in _alternatives(self.hint))

    def line(self) -> str:
        """`name=default`, in the syntax of the command line."""
        return f"{self.name}={shown(self.default)}"


@functools.cache
def reference() -> dict[str, Setting]:
    """Every setting of a run by its dotted name, in the order of the dataclasses."""
    return {setting.name: setting for setting in _settings(RunConfig, "")}


@functools.cache
def groups() -> dict[str, str]:
    """Descriptions of the groups of settings, such as `kernel` and `cluster.launch`."""
    return dict(_groups(RunConfig, ""))


def _settings(cls: type, prefix: str) -> Iterator[Setting]:
    hints, texts = typing.get_type_hints(cls), _texts(cls)
    for field in dataclasses.fields(cls):
        hint, name = hints[field.name], f"{prefix}{field.name}"
        if dataclasses.is_dataclass(hint):
            yield from _settings(typing.cast("type", hint), f"{name}.")
            continue
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        yield Setting(name, hint, default, texts.get(field.name, ""))


def _groups(cls: type, prefix: str) -> Iterator[tuple[str, str]]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hint := hints[field.name]):
            about = inspect.getdoc(hint) or ""
            yield f"{prefix}{field.name}", " ".join(about.partition("\nArgs:")[0].split())
            yield from _groups(typing.cast("type", hint), f"{prefix}{field.name}.")


def _texts(cls: type) -> dict[str, str]:
    """The texts of the section `Args:` of a docstring, by field."""
    body = (inspect.getdoc(cls) or "").partition("Args:\n")[2].partition("\nRaises:")[0]
    found: dict[str, str] = {}
    names: list[str] = []
    for line in body.splitlines():
        entry = _ENTRY.fullmatch(line.strip()) if line.startswith("    ") and line[4:5].strip() else None
        if entry is not None:
            names = entry["names"].split(", ")
        for name in names:
            found[name] = f"{found.get(name, '')} {entry['text'] if entry else line.strip()}".strip()
    return found


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def _kinds(hint: Any) -> Iterator[Any]:
    for one in _alternatives(hint):
        yield from typing.get_args(one) if typing.get_origin(one) is tuple else (one,)
