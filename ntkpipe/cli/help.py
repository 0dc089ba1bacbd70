"""`ntkpipe help [COMMAND|GROUP|SETTING]`: the texts of commands and of the configuration's dataclasses, also as one page."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ntkpipe import __version__
from ntkpipe.cli.commands import COMMANDS, Command
from ntkpipe.cli.folder import config_folder
from ntkpipe.cli.words import NO_GROUP, nearest
from ntkpipe.config.reference import Setting, groups, reference
from ntkpipe.config.values import shown
from ntkpipe.errors import ConfigError

EXIT_CODES: Mapping[int, str] = {
    0: "done",
    1: "an error of ntkpipe's own (a bug: please report it)",
    2: "bad configuration",
    3: "bad data",
    4: "incomplete: something needed is not computed yet",
    5: "held by another run",
    6: "a stored object is missing, damaged or made for something else",
    7: "numerical failure",
    8: "does not fit: memory, disk or device",
    9: "predicted, but the figures or the page could not be made: ntkpipe report run_dir=DIR makes them again",
    75: "told to stop (SIGTERM, SIGUSR1), or the cluster's head is lost: start the same command again",
    130: "interrupted; the same command goes on where it stopped",
}
_OWN_FLAGS = """\
  --multirun NAME=A,B ...  a run for every value, or every combination of values, below run_dir
  --cfg job                print the configuration that would run, and stop
  --config-dir FOLDER      files of your own besides ntkpipe's, such as FOLDER/experiment/mine.yaml"""


def show_help(words: Sequence[str]) -> int:
    """Print what a word means; returns the exit code.

    Args:
        words: a command, a group such as `kernel` or `cluster.launch`, a choice such as `kernel=fcn`, or a setting; none gives
            the overview, and `format=markdown` the whole reference as a page.

    Raises:
        ConfigError: if there is nothing of that name.
    """
    if not words:
        print(usage())
    elif words[0] == "format=markdown":
        print(page(), end="")
    elif len(words) > 1:
        raise ConfigError(f"ntkpipe help explains one thing at a time: {', '.join(words)} are {len(words)}")
    else:
        print("\n".join(_about(words[0])))
    return 0


def usage() -> str:
    """The overview: commands, groups of settings, exit codes."""
    commands = [f"  {name:<11} {command.text}" for name, command in COMMANDS.items()]
    settings = [f"  {name:<15} {_first(about)}" for name, about in groups().items()]
    codes = [f"  {code}  {text}" for code, text in EXIT_CODES.items()]
    return "\n".join(
        (
            f"ntkpipe {__version__}: exact predictions of infinitely wide neural networks\n",
            "usage: ntkpipe COMMAND [group=choice ...] [setting=value ...]\n",
            "commands",
            *commands,
            "\ngroups of settings",
            *settings,
            "\n  ntkpipe help kernel          a group: its choices and settings",
            "  ntkpipe help kernel.depth    one setting",
            "  ntkpipe help run             one command, as ntkpipe run --help\n",
            "exit codes",
            *codes,
        )
    )


def of_command(name: str) -> list[str]:
    """Help of one command, as lines."""
    command = COMMANDS[name]
    lines = [*_wrapped(f"ntkpipe {name}: {command.text}", ""), "", f"  ntkpipe {name} {command.example}".rstrip()]
    if command.own:
        lines += ["", "settings of this command", *_own(command)]
    if command.composes:
        lines += ["", "choices, group=NAME"]
        lines += [f"  {group}: {', '.join(found)}" for group in _chosen() if (found := _choices(group))]
        lines += ["", "settings of a run (ntkpipe help NAME explains one)"]
        for group in ("", *groups()):
            lines += _wrapped(" ".join(one.line() for one in _inside(group)), "  ")
        lines += ["", "flags", _OWN_FLAGS]
    return lines


def _about(word: str) -> list[str]:
    name = word.partition("=")[0].replace("/", ".")
    if word in COMMANDS:
        return of_command(word) if word not in groups() else [*of_command(word), "", *_of_group(word)]
    if name in groups() or name == "experiment":
        return _of_group(name)
    if name in reference():
        return _of_setting(reference()[name])
    for command in COMMANDS:
        if name in COMMANDS[command].own:
            own = COMMANDS[command].own[name]
            return [f"{name}={own.default or 'none'}", f"  of ntkpipe {command}: {own.text}"]
    same = [one for one in reference() if one.rpartition(".")[2] == name]
    if len(same) == 1:
        return _of_setting(reference()[same[0]])
    tails = {one.rpartition(".")[2]: one for one in reference()}
    close = nearest(name, [*COMMANDS, *groups(), *reference()]) or tails.get(nearest(name, tails) or "")
    hint = f": {' or '.join(same)}?" if same else f". Did you mean {close}?" if close else "."
    raise ConfigError(f"there is no command, group or setting {word!r}{hint} (ntkpipe help lists them)")


def _of_group(name: str) -> list[str]:
    about = groups().get(name, "Files that set several groups at once, as overlays of the defaults.")
    lines = [*_wrapped(f"{name}: {about}", "")]
    if choices := _choices(name):
        group = name.replace(".", "/")
        lines += ["", f"choices, {group}=NAME"]
        for choice, text in choices.items():
            lines += _wrapped(f"{choice:<14} {text}".rstrip(), "  ", hanging=17)
    for setting in _inside(name):
        lines += ["", *_of_setting(setting, brief=True)]
    return lines


def _of_setting(setting: Setting, *, brief: bool = False) -> list[str]:
    lines = [setting.line(), *_wrapped(f"{setting.takes}: {setting.text}", "    ")]
    if brief:
        return lines
    from ntkpipe.run.meanings import MEANINGS  # imports much

    for need in MEANINGS[setting.name]:
        values = ", ".join(map(shown, need.values))
        where = "".join(f", where {name} is {' or '.join(map(shown, one))}" for name, one in need.where.items())
        lines += _wrapped(f"has a meaning for {need.setting}: {values}{where}", "    ")
    return lines


def _own(command: Command) -> Iterator[str]:
    for name, own in command.own.items():
        told = f"{name}={own.default}" if own.default is not None else name
        yield from _wrapped(f"{told:<22} {own.text}", "  ", hanging=25)


def _inside(group: str) -> list[Setting]:
    return [one for one in reference().values() if one.group == group]


def _chosen() -> tuple[str, ...]:
    return (*groups(), "experiment")


def _choices(group: str) -> dict[str, str]:
    """Names that a group may be given, each with the first words of its file; of a group with one there is nothing to choose."""
    folder = config_folder() / group.replace(".", "/")
    if group.replace(".", "/") == NO_GROUP:
        return {}
    found = {path.stem: _comment(path) for path in sorted(folder.glob("*.yaml"))}
    return found if len(found) > 1 or group == "experiment" else {}


def _comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    told = [line[1:].strip() for line in lines if line.startswith("#") and "@package" not in line]
    return " ".join(told)


def _first(text: str) -> str:
    return text.partition(". ")[0].rstrip(".")


def _wrapped(text: str, indent: str, *, hanging: int | None = None) -> list[str]:
    width = min(max(shutil.get_terminal_size((110, 24)).columns, 60), 120)
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=" " * (len(indent) if hanging is None else hanging),
        break_long_words=False,
        break_on_hyphens=False,
    )


def page() -> str:
    """The reference as a page in Markdown: what docs/settings.md holds."""
    lines = [
        "# Commands and settings",
        "",
        "Made by `make docs` from the texts that `ntkpipe help` shows. A setting is given as `NAME=VALUE`, a choice as `GROUP=NAME`.",
        "Numbers may be written `1e3`, `2**0.5`, `sqrt(2)` or `pi/2`; a list of one as that one; no value as `null`.",
        "",
        "TAB completes commands, settings, choices and paths, after one of these lines in the shell's start-up file:",
        "",
        "```",
        'eval "$(ntkpipe completion bash)"          # ~/.bashrc',
        'eval "$(ntkpipe completion zsh)"           # ~/.zshrc, after compinit',
        "ntkpipe completion fish | source           # ~/.config/fish/config.fish",
        "```",
        "",
        "## Commands",
        "",
        "| command | what it does | settings of its own |",
        "|---|---|---|",
    ]
    for name, command in COMMANDS.items():
        own = {n: o for n, o in command.own.items() if not n.startswith("profile.") and "/" not in n}
        told = "; ".join(f"`{n}`{f' ({o.default})' if o.default else ''}: {o.text}" for n, o in own.items())
        lines.append(f"| `{name}` | {_cell(command.text)} | {_cell(told)} |")
    for group in ("", *groups()):
        about = groups().get(group, "What belongs to no group.")
        lines += ["", f"## {group or 'the run'}", "", about]
        if choices := _choices(group) if group else {}:
            lines += ["", f"| `{group.replace('.', '/')}=` | |", "|---|---|"]
            lines += [f"| `{name}` | {_cell(text)} |" for name, text in choices.items()]
        lines += ["", "| setting | default | takes | meaning |", "|---|---|---|---|"]
        for one in _inside(group):
            lines.append(f"| `{one.name}` | `{shown(one.default)}` | {one.takes} | {_cell(one.text)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
