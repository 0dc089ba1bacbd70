"""Completion with TAB: scripts for shells, and the words that may stand where the cursor is. Reads `conf/` alone, in 0.2 s."""

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
    """Print the script of a shell; returns the exit code.

    Raises:
        ConfigError: unless one shell is named.
    """
    if len(words) != 1 or words[0] not in SCRIPTS:
        raise ConfigError(f'ntkpipe completion takes one of {", ".join(SCRIPTS)}: eval "$(ntkpipe completion bash)"')
    print(SCRIPTS[words[0]], end="")
    return 0


def complete(arguments: Sequence[str]) -> int:
    """Print what the last word of a line may become, one a line; nothing on any error.

    Args:
        arguments: the shell, and the line up to the cursor.
    """
    with contextlib.suppress(Exception):
        shell, line = arguments
        *words, current = _split(line)
        for found in candidates(words[1:], current):
            # Bash completes what follows an equals sign as a word of its own.
            print(_as_inserted(found[current.rfind("=") + 1 :] if shell == "bash" else found, shell))
    return 0


def _as_inserted(found: str, shell: str) -> str:
    """A candidate as the shell puts it into the line. Fish escapes it, and ends a word with a space, by itself."""
    if shell == "fish":
        return found.rstrip(" ")
    text = re.sub(r"([^\w@%+=:,./~-])", r"\\\1", found.rstrip(" "))
    return f"{text} " if found.endswith(" ") else text


def candidates(words: Sequence[str], current: str) -> list[str]:
    """What a word may become; what is complete ends with a space.

    Args:
        words: between `ntkpipe` and the word.
        current: the word, as far as it is typed.
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
    # Of a hundred settings those of one group at a time.
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
    """Truth values, and of a text the names that its explanation lists and its dataclass takes."""
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
    """Words of a line, the last one as far as it is typed."""
    try:
        words = shlex.split(line)
    except ValueError:  # a quotation mark that is still open
        words = line.split()
    return words if words and not line[-1:].isspace() else [*words, ""]
