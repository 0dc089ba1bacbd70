"""Parsing of command lines: the subcommand, flags at any place, and `key=value` settings."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser

from ntkpipe.config.values import converted
from ntkpipe.errors import ConfigError

# Hydra's flags that take a value as the next word.
_FLAGS_WITH_VALUE = {
    "--cfg",
    "-c",
    "--package",
    "-p",
    "--config-dir",
    "-cd",
    "--config-name",
    "-cn",
    "--config-path",
    "-cp",
    "--info",
    "-i",
    "--experimental-rerun",
}
# `--info` and `-i` take an optional topic, which is never a `key=value`.
_OPTIONAL_VALUE = {"--info", "-i"}


def flags_first(arguments: Sequence[str]) -> list[str]:
    """Move flags before overrides, because Hydra rejects a flag between two overrides."""
    flags: list[str] = []
    overrides: list[str] = []
    waiting = iter(range(len(arguments)))
    for k in waiting:
        word = arguments[k]
        # A deletion override starts with `~`. None of our arguments starts with a negative number.
        if not word.startswith("-"):
            overrides.append(word)
            continue
        flags.append(word)
        following = arguments[k + 1] if k + 1 < len(arguments) else None
        if word in _FLAGS_WITH_VALUE and following is not None and not (word in _OPTIONAL_VALUE and "=" in following):
            flags.append(following)
            next(waiting)
    return flags + overrides


def swept(arguments: Sequence[str]) -> set[str]:
    """Return the names of the settings that take several values in a sweep."""
    words = [a for a in arguments if "=" in a and not a.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(words)
    return {(one.input_line or "").partition("=")[0].lstrip("+") for one in parsed if one.is_sweep_override()}


def take_own(arguments: Sequence[str], known: Mapping[str, str | None]) -> tuple[dict[str, str | None], list[str]]:
    """Separate the command's own settings from the other words, which belong to a run's configuration.

    Args:
        arguments: the words after the subcommand.
        known: the command's own settings and their defaults.

    Returns:
        The values of the command's own settings, and the other words.
    """
    values, rest = dict(known), []
    for word in arguments:
        key, equals, value = word.partition("=")
        if equals and key in known:
            values[key] = value
        else:
            rest.append(word)
    return values, rest


def settings(arguments: Sequence[str], known: dict[str, str | None], command: str) -> dict[str, str | None]:
    """Parse `key=value` words of a command that reads a stored run.

    Args:
        arguments: the words after the subcommand.
        known: allowed keys and their defaults.
        command: name of the command, for messages.

    Raises:
        ConfigError: if a word is not `key=value`, or its key is unknown.
    """
    values = dict(known)
    for word in arguments:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"ntkpipe {command} takes key=value settings ({', '.join(known)}), not {word!r}")
        if key not in known:
            close = difflib.get_close_matches(key, list(known), n=1)
            hint = f" Did you mean {close[0]}={value}?" if close else ""
            raise ConfigError(
                f"ntkpipe {command} has no setting {key!r}; it has {', '.join(known)}.{hint} "
                "A stored run keeps its own configuration."
            )
        values[key] = value
    return values


def truth(name: str, value: str | None) -> bool:
    """Return the value of a boolean setting.

    Raises:
        ConfigError: if the value is not a boolean.
    """
    return converted(name, bool, value, True)


def whole(name: str, value: str | None) -> int:
    """Return a whole number of at least 0, which may be written as `1e3` or `2**10`.

    Raises:
        ConfigError: if the value is not such a number.
    """
    found = converted(name, int, value)
    if found < 0:
        raise ConfigError(f"{name}={value} must be a whole number, at least 0")
    return found


def number(name: str, value: str | None) -> float:
    """Return a number, which may be written as `sqrt(2)`.

    Raises:
        ConfigError: if the value is not a number.
    """
    return converted(name, float, value)


def numbers(name: str, value: str | None) -> tuple[float, ...]:
    """Return numbers that are written in brackets, or one number without brackets.

    Raises:
        ConfigError: if the value is not a list of numbers.
    """
    return converted(name, tuple[float, ...], value)
