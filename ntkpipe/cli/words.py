"""The words of a command line, checked before Hydra reads them: what is misspelt is told in the words of the setting."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from ntkpipe.config.arithmetic import evaluated
from ntkpipe.config.reference import Setting, groups, reference
from ntkpipe.errors import ConfigError

FLAGS = (
    *("--multirun", "-m", "--help", "-h", "--cfg", "-c", "--resolve", "--info", "-i", "--package", "-p", "--version"),
    *("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--run", "-r", "--hydra-help"),
)
"""Flags of commands that compose a configuration."""

MAPPINGS = tuple(f"{name}." for name, one in reference().items() if isinstance(one.default, dict))
"""Settings that any names may follow."""

# A folder of files that are taken otherwise.
NO_GROUP = "cluster/profile"
# What no file of a group is called: a number, a list, a mapping, nothing.
_NO_CHOICE = re.compile(r"|[-+.]?\d.*|[.+-]?(inf|nan)|[\[{].*|null|none|true|false", re.IGNORECASE | re.DOTALL)
_PARTS = re.compile(r"[^,\[\]()]*(?:\([^()]*(?:\([^()]*\)[^()]*)*\)[^,\[\]()]*)*|[,\[\]()]")


def nearest(word: str, known: Iterable[str], *, likeness: float = 0.7) -> str | None:
    """The known word that `word` is most likely meant for; None if there is none like it."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=likeness)), None)


def checked(words: Sequence[str], folder: Path, own: Collection[str] = ()) -> list[str]:
    """The words as Hydra takes them: arithmetic replaced by its numbers.

    Args:
        words: of a command that composes a configuration, flags first, paths already quoted.
        folder: of the configuration's files; `--config-dir` names another one besides.
        own: settings of the command alone, to suggest.

    Raises:
        ConfigError: on a word that sets nothing, naming what it is probably meant for.
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
        raise ConfigError(f"there is no flag {name}{hint}" + ("" if hint else f"; there are {', '.join(FLAGS)}"))


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
    """Refuse a group of settings that is given as a value: it is chosen by its name."""
    group = name.replace(".", "/")
    choices = sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})
    listed = ", ".join(choices)
    if "." in name or _NO_CHOICE.fullmatch(value):
        if group == "experiment" and value in ("null", "none"):
            return
        settings = "" if group == "experiment" else f"; its settings are {group.replace('/', '.')}.NAME=VALUE"
        raise ConfigError(f"{name}={value}: {group} is chosen by its name, {group}=NAME, one of {listed}{settings}")
    if re.search(r"[()'\"$/]", value):
        return  # choice(...), glob(...), quoted names, files of one's own
    for one in value.split(","):
        if one not in choices:
            hint = f". Did you mean {group}={close}?" if (close := nearest(one, choices, likeness=0.6)) else ""
            raise ConfigError(f"{group}={one} is not one of {listed}{hint}")


def unknown(name: str, own: Collection[str] = (), value: str = "VALUE") -> str:
    """What to say of a name that no setting has."""
    known = [*reference(), *groups(), "experiment", *own]
    dotted = name.replace("/", ".")
    ends = [one for one in known if one.rpartition(".")[2] == dotted.rpartition(".")[2]]
    if ends and "." not in dotted:
        meant = " or ".join(f"{one}={value}" for one in ends[:4])
        return f"there is no setting {name!r}. Did you mean {meant}?"
    # Of a name in a group that there is, among what it has; of others, by the last part too: it is what people remember.
    group = dotted.rpartition(".")[0]
    inside = [one for one in known if one.startswith(f"{group}.")] if group else []
    tails = {one.rpartition(".")[2]: one for one in reversed(known)} if "." not in dotted else {}
    tail = nearest(dotted, tails)
    close = nearest(dotted, inside) or (tails[tail] if tail else None) or nearest(dotted, known)
    if close is not None:
        return f"there is no setting {name!r}. Did you mean {close}={value}? (ntkpipe help {close} explains it)"
    if inside:
        return f"there is no setting {name!r}; {group} has {', '.join(one[len(group) + 1 :] for one in inside)}"
    top = [*dict.fromkeys(one.partition(".")[0] for one in known)]
    return f"there is no setting {name!r}; there are {', '.join(top)} (ntkpipe help lists them all)"


def _meant(word: str, own: Collection[str]) -> str:
    close = nearest(word, [*reference(), *groups(), *own])
    return f". Did you mean {close}=...?" if close else ""


def _numbers(value: str) -> str:
    """A value in which everything that is arithmetic, such as `sqrt(2)`, is replaced by its number; numbers as they are."""

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
    except (ValueError, OverflowError):  # of infinity
        return value


def _check_value(setting: Setting, value: str, sweep: bool) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser  # takes as long as all of `ntkpipe help`
    from hydra.errors import HydraException

    word = f"{setting.name}={value}"
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException as error:
        opened = sum(map(value.count, "[({")) - sum(map(value.count, "])}"))
        why = (
            "a bracket is not closed" if opened > 0 else "a bracket is closed that was not opened" if opened < 0 else ""
        )
        why = why or ("a quotation mark is not closed" if (value.count("'") % 2 or value.count('"') % 2) else "")
        quoted = (
            "" if setting.is_number() else ". What has brackets, commas or spaces goes in quotation marks, \"'a, b'\""
        )
        raise ConfigError(
            f"{word} cannot be read{f' ({why})' if why else ''}: it must be {setting.takes}, such as "
            f"{setting.name}={setting.example}{quoted}"
        ) from error
    if override.is_sweep_override() and not sweep:
        several = f"as a list {setting.name}=[{value}]; " if setting.is_list() else ""
        raise ConfigError(f"{word} are several values: {several}for a run of each, add --multirun")
