"""Checks the words of a command line before Hydra reads them, to explain misspelt settings."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from ntkpipe.cli import other_names
from ntkpipe.config.arithmetic import evaluated
from ntkpipe.config.reference import Setting, groups, reference
from ntkpipe.errors import ConfigError

FLAGS = (
    *("--multirun", "-m", "--help", "-h", "--cfg", "-c", "--resolve", "--info", "-i", "--package", "-p", "--version"),
    *("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--run", "-r", "--hydra-help"),
)
"""Flags of commands that compose a configuration."""

MAPPINGS = tuple(f"{name}." for name, one in reference().items() if isinstance(one.default, dict))
"""Settings below which any name is allowed."""

# The setting `cluster.profile` chooses a file of this folder, so the folder is not a group.
NO_GROUP = "cluster/profile"
# Values that are not a file name of a group: a number, a list, a mapping, a boolean, or an empty value.
_NO_CHOICE = re.compile(r"|[-+.]?\d.*|[.+-]?(inf|nan)|[\[{].*|null|none|true|false", re.IGNORECASE | re.DOTALL)
_PARTS = re.compile(r"[^,\[\]()]*(?:\([^()]*(?:\([^()]*\)[^()]*)*\)[^,\[\]()]*)*|[,\[\]()]")


def nearest(word: str, known: Iterable[str], *, likeness: float = 0.7) -> str | None:
    """Return the known word that is most similar to `word`, or None if no word is similar."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=likeness)), None)


def checked(words: Sequence[str], folder: Path, own: Collection[str] = ()) -> list[str]:
    """Return the words for Hydra, with arithmetic replaced by numbers.

    Args:
        words: words of a command that composes a configuration, with flags first and paths already quoted.
        folder: the configuration's folder; `--config-dir` adds another one.
        own: the command's own settings, for suggestions.

    Raises:
        ConfigError: if a word sets nothing, suggesting a correction.
    """
    sweep = bool({"--multirun", "-m"} & set(words))
    folders, made = [folder], list(words)
    for place, word in enumerate(words):
        before = words[place - 1] if place else ""
        if before in _WITH_VALUE:
            folders += [Path(word)] if before in _FOLDER else []
        elif word.startswith("-"):
            _check_flag(word)
            folders += [Path(word.partition("=")[2])] if word.startswith("--config-dir=") else []
        else:
            made[place] = _checked(word, folders, sweep, own)
    return made


_FOLDER = ("--config-dir", "-cd")
_WITH_VALUE = (*_FOLDER, "--cfg", "-c", "--package", "-p", "--config-name", "-cn", "--config-path", "-cp")


def _check_flag(word: str) -> None:
    name = word.partition("=")[0]
    if name not in FLAGS and not name.startswith("--experimental"):
        hint = f": did you mean {close}?" if (close := nearest(name, FLAGS)) else ""
        raise ConfigError(f"there is no flag {name}{hint}" + ("" if hint else f"; the flags are {', '.join(FLAGS)}"))


def _checked(word: str, folders: Sequence[Path], sweep: bool, own: Collection[str]) -> str:
    key, equals, value = word.partition("=")
    name = key.lstrip("+~").partition("@")[0]
    if not name or (not equals and not key.startswith("~")):
        raise ConfigError(f"{word!r} sets nothing: write NAME=VALUE, such as kernel.depth=3{_meant(word, own)}")
    if name.startswith("hydra") or name.startswith(MAPPINGS):
        return word
    if name and name != NO_GROUP and any((folder / name.replace(".", "/")).is_dir() for folder in folders):
        if equals:
            _check_choice(name, value, folders)
        return word
    setting = reference().get(name.replace("/", "."))
    if setting is None:
        raise ConfigError(unknown(name, own, value))
    if not equals:
        return word
    if setting.is_number():
        value = _numbers(value)
    _check_value(setting, value, sweep)
    return f"{key}={value}"


def _check_choice(name: str, value: str, folders: Sequence[Path]) -> None:
    """Refuse a value for a group of settings, because a group is chosen by its name."""
    group = name.replace(".", "/")
    choices = sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})
    listed = ", ".join(choices)
    if "." in name or _NO_CHOICE.fullmatch(value):
        if group == "experiment" and value in ("null", "none"):
            return
        settings = "" if group == "experiment" else f"; its settings are {group.replace('/', '.')}.NAME=VALUE"
        raise ConfigError(f"{name}={value}: {group} is chosen by its name, {group}=NAME, one of {listed}{settings}")
    if re.search(r"[()'\"$/]", value):
        return  # the value is choice(...), glob(...), a quoted name or the user's own file
    for one in value.split(","):
        if one not in choices:
            hint = f". Did you mean {group}={close}?" if (close := nearest(one, choices, likeness=0.6)) else ""
            raise ConfigError(f"{group}={one} is not one of {listed}{hint}")


def unknown(name: str, own: Collection[str] = (), value: str = "VALUE") -> str:
    """Return the message about an unknown name of a setting."""
    known = [*reference(), *groups(), "experiment", *own]
    dotted = name.replace("/", ".")
    ends = [one for one in known if one.rpartition(".")[2] == dotted.rpartition(".")[2]]
    if ends and "." not in dotted:
        meant = " or ".join(f"{one}={value}" for one in ends[:4])
        return f"there is no setting {name!r}. Did you mean {meant}?"
    if others := other_names.meant(dotted):
        return (
            f"there is no setting {name!r}. Did you mean {' or '.join(others)}? (ntkpipe help {others[0]} explains it)"
        )
    # A name in an existing group is compared with that group's settings. Other names are also compared by their last
    # part, which users remember.
    group = dotted.rpartition(".")[0]
    inside = [one for one in known if one.startswith(f"{group}.")] if group else []
    tails = {one.rpartition(".")[2]: one for one in reversed(known)} if "." not in dotted else {}
    tail = nearest(dotted, tails)
    # A setting of the group that lists the value among its choices is a better match than a similar name.
    chosen = [one for one in inside if f"`{value}`" in getattr(reference().get(one), "text", "")]
    kind = next((one for one in chosen if one.endswith(".kind")), None)
    close = kind or nearest(dotted, chosen or inside, likeness=0.0 if chosen else 0.7)
    close = close or (tails[tail] if tail else None) or nearest(dotted, known)
    if close is not None:
        return f"there is no setting {name!r}. Did you mean {close}={value}? (ntkpipe help {close} explains it)"
    if inside:
        return f"there is no setting {name!r}; {group} has {', '.join(one[len(group) + 1 :] for one in inside)}"
    top = [*dict.fromkeys(one.partition(".")[0] for one in known)]
    return f"there is no setting {name!r}; the groups and settings are {', '.join(top)} (ntkpipe help lists them all)"


def _meant(word: str, own: Collection[str]) -> str:
    close = nearest(word, [*reference(), *groups(), *own])
    return f". Did you mean {close}=...?" if close else ""


def _numbers(value: str) -> str:
    """Return a value with arithmetic, such as `sqrt(2)`, replaced by its number; numbers stay unchanged."""

    def number(found: re.Match[str]) -> str:
        part = found[0]
        if not re.search(r"[a-z*/()+-]", part.strip().lstrip("+-")):
            return part
        try:
            float(part)
            return part
        except ValueError:
            pass
        try:
            made = evaluated(part)
        except ValueError:
            return part
        return f"{made:.0f}" if made == int(made) and abs(made) < 1e15 else repr(made)

    try:
        return _PARTS.sub(number, value)
    except (ValueError, OverflowError):  # infinity is not a whole number
        return value


def _check_value(setting: Setting, value: str, sweep: bool) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser  # imported late: `ntkpipe help` is faster
    from hydra.errors import HydraException

    word = f"{setting.name}={value}"
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException as error:
        opened = sum(map(value.count, "[({")) - sum(map(value.count, "])}"))
        why = "a bracket is not closed" if opened > 0 else "a closing bracket has no opening one" if opened < 0 else ""
        why = why or ("a quotation mark is not closed" if (value.count("'") % 2 or value.count('"') % 2) else "")
        quoted = "" if setting.is_number() else ". Quote a value with brackets, commas or spaces: \"'a, b'\""
        raise ConfigError(
            f"{word} cannot be read{f' ({why})' if why else ''}: it must be {setting.takes}, such as "
            f"{setting.name}={setting.example}{quoted}"
        ) from error
    if override.is_sweep_override() and not sweep:
        several = f"write a list as {setting.name}=[{value}]; " if setting.is_list() else ""
        raise ConfigError(f"{word} gives several values: {several}for one run per value, add --multirun")
