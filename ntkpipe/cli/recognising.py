"""Recognises the kind of data of `data.path=FILE` without `data=`, from the name and the content of the file."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ntkpipe.config import GIVEN_KERNELS
from ntkpipe.errors import ConfigError
from ntkpipe.run.meanings import likely_data


def with_data(words: Sequence[str]) -> list[str]:
    """Return the words, with `data=KIND` added if they name a file but not its kind, and print the recognised kind.

    Args:
        words: words of a command that composes a configuration.

    Raises:
        ConfigError: if the file fits several kinds, listing them.
    """
    given = {word.partition("=")[0].lstrip("+"): word.partition("=")[2] for word in words if "=" in word}
    if "data.path" not in given or {"data", "data.kind", "experiment"} & given.keys():
        return list(words)
    paths = [path.strip("'\"") for path in given["data.path"].split(",")]
    if given.get("kernel", given.get("kernel.kind")) in GIVEN_KERNELS:
        return [*words, "data=labels"]
    kinds = list(dict.fromkeys(likely_data(path) for path in paths))
    found = kinds[0] if len(kinds) == 1 else tuple(dict.fromkeys(kind for some in kinds for kind in some))
    if len(found) != 1:
        listed = f"{', '.join(f'data={kind}' for kind in found[:-1])} or data={found[-1]}"
        raise ConfigError(f"data.path={given['data.path']} fits several kinds of data: choose one, {listed}")
    print(f"data     {found[0]}, recognised from {paths[0]}; data=NAME chooses another kind", file=sys.stderr)
    return [*words, f"data={found[0]}"]
