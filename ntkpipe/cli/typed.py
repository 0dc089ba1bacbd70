"""Keeps paths of a command line as typed, because Hydra would read some as numbers, dates, booleans or lists."""

from __future__ import annotations

import os
import re

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from ntkpipe.run.places import PATHS, STORE

_FOLDERS = ("run_dir", STORE)
"""Paths that every configuration has. For these, `null` is a name; for other paths, it means no path."""


def as_typed(word: str) -> str:
    """Return a word that sets a path with `~` expanded, and quoted if Hydra would misread it.

    The values of a sweep, `data.path=a.npz,b.npz`, are quoted one by one. Other words are returned unchanged.
    """
    key, equals, value = word.partition("=")
    name = key.lstrip("+")
    if not equals or name not in (*_FOLDERS, *PATHS) or value[:1] in ("'", '"'):
        return word
    wanted = ",".join(map(os.path.expanduser, value.split(",")))
    try:
        override = OverridesParser.create().parse_override(f"{key}={wanted}")
    except HydraException:  # brackets, equals signs, or letters outside its grammar
        return f"{key}={_quoted(wanted)}"
    if override.is_sweep_override():
        if re.search(r"[()'\"\[{]", wanted):
            return word  # choice(...), range(...), or quoted values
        return f"{key}={','.join(as_typed(f'{key}={one}').partition('=')[2] for one in wanted.split(','))}"
    if value == "null" and name not in _FOLDERS:
        return word
    found = override.value()
    return f"{key}={wanted if isinstance(found, str) and found == wanted else _quoted(wanted)}"


def _quoted(value: str) -> str:
    text = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"'{text}'"
