"""Hydra's complaints in the words of this tool: which setting is unknown, and which ones there are."""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from pathlib import Path

from ntkpipe.config import RunConfig
from ntkpipe.errors import ConfigError

_UNKNOWN = re.compile(r"Could not (?:override|append to config|delete from config)[^']*'?(?P<key>[\w./]+)'?")

# A folder of files that are taken otherwise.
_NO_GROUP = "cluster/profile"
_INNER = re.compile(r"\n\s*(full_key|reference_type|object_type)[:=].*")
_MERGED = re.compile(r"Error merging override \+*(?P<setting>[^;=\n]+)=(?P<value>[^;\n]+); Cannot merge")
_GROUP = re.compile(r"(?P<group>[a-z]+(?:[./][a-z]+)?)=(?P<value>.*)", re.DOTALL)
# What no file of a group is called: a number, a list, a mapping, nothing.
_NO_CHOICE = re.compile(r"|[-+.]?\d.*|[.+-]?(inf|nan)|[\[{].*|null|none|true|false", re.IGNORECASE | re.DOTALL)


def check_group(word: str, folder: Path) -> None:
    """Refuse a group of settings that is given as a value: Hydra takes a choice by its name there.

    Args:
        word: of the command line.
        folder: of the configuration's files.

    Raises:
        ConfigError: naming the choices.
    """
    found = _GROUP.fullmatch(word)
    group = "" if found is None else found["group"].replace(".", "/")
    if found is None or not (folder / group).is_dir() or group == _NO_GROUP:
        return
    choices = sorted(path.stem for path in (folder / group).glob("*.yaml"))
    if "." in found["group"] or _NO_CHOICE.fullmatch(found["value"]):
        settings = "" if group == "experiment" else f"; its settings are {group.replace('/', '.')}.NAME=VALUE"
        raise ConfigError(f"{word}: {group} is chosen by its name, {group}=NAME, one of {', '.join(choices)}{settings}")


def explain(error: BaseException) -> str:
    """The text for a failed composition: its whole chain of causes, or the names that a misspelt one may mean."""
    causes, cause = [str(error).strip()], error.__cause__
    while cause is not None:
        causes.append(str(cause).strip())
        cause = cause.__cause__
    text = "; ".join(dict.fromkeys(c for c in causes if c))
    # Where Hydra has looked says nothing to who misspelt a name, nor do the names of OmegaConf's classes.
    text = _INNER.sub("", text.partition("\nConfig search path")[0]).strip()
    if found := _MERGED.search(text):
        kind = "a list" if found["value"].startswith("{") else "a mapping of names to values"
        return f"{found['setting']}={found['value']} must be {kind}"
    if (found := _UNKNOWN.search(text)) and (unknown := _unknown_setting(found["key"])):
        return unknown
    return text


def _unknown_setting(key: str) -> str | None:
    """What to say of `key` if it is no setting; None if it is one."""
    known: type = RunConfig
    walked: list[str] = []
    for name in key.replace("/", ".").split("."):
        hints = typing.get_type_hints(known) if dataclasses.is_dataclass(known) else {}
        if name not in hints:
            place = f"{'.'.join(walked)} has" if walked else "there are"
            names = [*hints] if walked else [*hints, "experiment"]
            close = difflib.get_close_matches(name, names, n=1)
            hint = f" Did you mean {'.'.join([*walked, close[0]])}?" if close else ""
            return f"there is no setting {key!r}; {place} {', '.join(names) or 'no settings inside'}.{hint}"
        known = hints[name]
        walked.append(name)
    return None
