"""Words of a command line as they were typed: Hydra reads numbers, dates, truth values and lists where a path stands."""

from __future__ import annotations

import os
import re

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from ntkpipe.run.places import PATHS, STORE

_FOLDERS = ("run_dir", STORE)
"""Paths that every configuration has: `null` is a name there, and the absence of a path elsewhere."""


def as_typed(word: str) -> str:
    """A word that sets a path, quoted where Hydra would not take the path as it stands; `~` is replaced. Others as they are.

    The values of a sweep, `data.path=a.npz,b.npz`, are taken one by one.
    """
    key, equals, value = word.partition("=")
    name = key.lstrip("+")
    if not equals or name not in (*_FOLDERS, *PATHS) or value[:1] in ("'", '"'):
        return word
    wanted = ",".join(map(os.path.expanduser, value.split(",")))
    try:
        override = OverridesParser.create().parse_override(f"{key}={wanted}")
    except HydraException:  # brackets, equals signs, letters that its grammar does not know
        return f"{key}={_quoted(wanted)}"
    if override.is_sweep_override():
        if re.search(r"[()'\"\[{]", wanted):
            return word  # choice(...), range(...), values that are quoted
        return f"{key}={','.join(as_typed(f'{key}={one}').partition('=')[2] for one in wanted.split(','))}"
    if value == "null" and name not in _FOLDERS:
        return word
    found = override.value()
    return f"{key}={wanted if isinstance(found, str) and found == wanted else _quoted(wanted)}"


def _quoted(value: str) -> str:
    text = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"'{text}'"
