"""Hydra's complaints in the words of this tool: which setting is unknown, and which ones there are."""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing

from ntkpipe.config import RunConfig

_UNKNOWN = re.compile(r"Could not (?:override|append to config|delete from config)[^']*'?(?P<key>[\w./]+)'?")


def explain(error: BaseException) -> str:
    """The text for a failed composition: its whole chain of causes, or the names that a misspelt one may mean."""
    causes, cause = [str(error).strip()], error.__cause__
    while cause is not None:
        causes.append(str(cause).strip())
        cause = cause.__cause__
    text = "; ".join(dict.fromkeys(c for c in causes if c))
    # Where Hydra has looked says nothing to who misspelt a name.
    text = text.partition("\nConfig search path")[0].strip()
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
