"""Explains Hydra's errors in the terms of this program: the unknown setting, and the settings that exist."""

from __future__ import annotations

import re

from ntkpipe.cli.words import unknown
from ntkpipe.config.reference import reference

_UNKNOWN = re.compile(r"Could not (?:override|append to config|delete from config)[^']*'?(?P<key>[\w./]+)'?")

_INNER = re.compile(r"\n\s*(full_key|reference_type|object_type)[:=].*")
_MERGED = re.compile(r"Error merging override \+*(?P<setting>[^;=\n]+)=(?P<value>[^;\n]+); Cannot merge")
_MISSING = re.compile(r"Interpolation key '(?P<name>[^']*)' not found")


def explain(error: BaseException) -> str:
    """Return the message about a failed composition: its chain of causes, or suggestions for a misspelt name."""
    causes, cause = [str(error).strip()], error.__cause__
    while cause is not None:
        causes.append(str(cause).strip())
        cause = cause.__cause__
    text = "; ".join(dict.fromkeys(c for c in causes if c))
    # Hydra's search path and the names of OmegaConf's classes do not help a user who misspelt a name.
    text = _INNER.sub("", text.partition("\nConfig search path")[0]).strip()
    if found := _MERGED.search(text):
        kind = "a list" if found["value"].startswith("{") else "a mapping of names to values"
        return f"{found['setting']}={found['value']} must be {kind}"
    if found := _MISSING.search(text):
        return f"a value refers to ${{{found['name']}}}, which is not a setting"
    if (found := _UNKNOWN.search(text)) and found["key"].replace("/", ".") not in reference():
        return unknown(found["key"])
    return re.sub(r"\s*See https://hydra\.cc\S* for details", "", text)
