"""Completion with TAB: scripts for shells, and the candidates at the cursor, which need only `conf/` and 0.2 s."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shlex
import typing
from collections.abc import Iterator, Sequence

from ntkpipe.cli.commands import COMMANDS
from ntkpipe.cli.folder import config_folder
from ntkpipe.config import RunConfig, from_dict
from ntkpipe.config.reference import groups, reference
from ntkpipe.errors import ConfigError

SCRIPTS = {
    "bash": """\
_ntkpipe() {
    local IFS=$'\\n'
    COMPREPLY=( $(ntkpipe --complete bash "${COMP_LINE:0:$COMP_POINT}" 2>/dev/null) )
}
complete -o nospace -F _ntkpipe ntkpipe
""",
    "zsh": """\
_ntkpipe() {
    local -a found
    found=( ${(f)"$(ntkpipe --complete zsh "$LBUFFER" 2>/dev/null)"} )
    compadd -Q -S '' -- $found
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _ntkpipe ntkpipe
""",
    "fish": "complete -c ntkpipe -f -a '(ntkpipe --complete fish (commandline -cp) 2>/dev/null)'\n",
}
_FLAGS = ("--multirun ", "--cfg job ", "--config-dir ", "--help ")
_PATHS = (
    "path",
    "run_dir",
    "store.url",
    "kernel.weights",
    "kernel.train",
    "kernel.test",
    "kernel.test_diagonal",
    "data.new",
    "data.new_diagonal",
)


def show_script(words: Sequence[str]) -> int:
    """Print the script of a shell, and return the exit code.

    Raises:
        ConfigError: if the words do not name exactly one shell.
    """
    if len(words) != 1 or words[0] not in SCRIPTS:
        raise ConfigError(f'ntkpipe completion takes one of {", ".join(SCRIPTS)}: eval "$(ntkpipe completion bash)"')
    print(SCRIPTS[words[0]], end="")
    return 0


def complete(arguments: Sequence[str]) -> int:
    """Print the completions of the last word of a line, one per line, or nothing on an error; return the exit code.

    Args:
        arguments: the shell, and the line up to the cursor.
    """
    with contextlib.suppress(Exception):
        shell, line = arguments
        *words, current = _split(line)
        for found in candidates(words[1:], current):
            # Bash treats the text after an equals sign as a separate word.
            print(_as_inserted(found[current.rfind("=") + 1 :] if shell == "bash" else found, shell))
    return 0


def _as_inserted(found: str, shell: str) -> str:
    """Return a candidate in the form that the shell inserts; fish escapes it and appends a space itself."""
    if shell == "fish":
        return found.rstrip(" ")
    text = re.sub(r"([^\w@%+=:,./~-])", r"\\\1", found.rstrip(" "))
    return f"{text} " if found.endswith(" ") else text


def candidates(words: Sequence[str], current: str) -> list[str]:
    """Return the sorted completions of a word; a complete word ends with a space.

    Args:
        words: the words between `ntkpipe` and this word.
        current: the part of the word that is typed.
    """
    return sorted({one for one in _offered(words, current) if one.startswith(current)})


def _offered(words: Sequence[str], current: str) -> Iterator[str]:
    if not words:
        yield from (f"{name} " for name in COMMANDS)
        return
    command = words[0]
    if command == "completion":
        yield from (f"{shell} " for shell in SCRIPTS)
    elif command == "help":
        yield from (f"{name} " for name in (*COMMANDS, *groups(), *reference()))
    elif command in COMMANDS:
        yield from _values(command, current) if "=" in current else _names(command, current)


def _names(command: str, current: str) -> Iterator[str]:
    yield from (f"{name}=" for name in COMMANDS[command].own)
    if not COMMANDS[command].composes:
        return
    if current.startswith("-"):
        yield from _FLAGS
        return
    yield from (f"{group.replace('.', '/')}=" for group in (*groups(), "experiment") if len(_choices(group)) > 1)
    # There are more than a hundred settings, so offer those of one group at a time.
    whole = "." in current
    yield from (f"{name}=" for name, one in reference().items() if whole or not one.group)
    yield from () if whole else (f"{group}." for group in groups())


def _values(command: str, current: str) -> Iterator[str]:
    name, _, value = current.partition("=")
    before = f"{name}={value[: value.rfind(',') + 1]}"  # of a sweep
    if name.endswith(_PATHS):
        for path in glob.glob(f"{glob.escape(os.path.expanduser(value))}*"):
            yield f"{name}={path}{'/' if os.path.isdir(path) else ' '}"
    elif choices := _choices(name.replace("/", ".")):
        yield from (f"{before}{choice} " for choice in choices)
    elif name in COMMANDS[command].own:
        own = COMMANDS[command].own[name]
        told = ("true", "false") if own.default in ("true", "false") else re.findall(r"`(\w+)`", own.text)
        yield from (f"{before}{one} " for one in told)
    elif name in reference():
        yield from (f"{before}{one} " for one in _known_values(name))


def _known_values(name: str) -> Iterator[str]:
    """Yield the values of a boolean, or the names in the help of a text setting that its dataclass accepts."""
    setting = reference()[name]
    if setting.hint is bool:
        yield from ("true", "false")
    if str not in (setting.hint, *typing.get_args(setting.hint)):
        return
    for one in re.findall(r"`(\w+)`", setting.text):
        nested: typing.Any = one
        for part in reversed(name.split(".")):
            nested = {part: nested}
        try:
            from_dict(RunConfig, nested)
        except ConfigError as error:
            if f"{name}=" in str(error):
                continue
        yield one


def _choices(group: str) -> list[str]:
    return [path.stem for path in (config_folder() / group.replace(".", "/")).glob("*.yaml")] if group else []


def _split(line: str) -> list[str]:
    """Return the words of a line; the last one may be incomplete."""
    try:
        words = shlex.split(line)
    except ValueError:  # a quotation mark that is still open
        words = line.split()
    return words if words and not line[-1:].isspace() else [*words, ""]
