"""`ntkpipe help [COMMAND|GROUP|SETTING]`: prints the texts of commands and settings, also as one page."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ntkpipe import __version__
from ntkpipe.cli import other_names
from ntkpipe.cli.commands import COMMANDS, Command
from ntkpipe.cli.folder import config_folder
from ntkpipe.cli.words import NO_GROUP, nearest
from ntkpipe.config.reference import Setting, groups, reference
from ntkpipe.config.values import shown
from ntkpipe.errors import ConfigError

EXIT_CODES: Mapping[int, str] = {
    0: "done",
    1: "internal error (a bug in ntkpipe: please report it)",
    2: "bad configuration",
    3: "bad data",
    4: "incomplete: a required stage has not finished",
    5: "the folder or store is in use by another run",
    6: "a stored object is missing, damaged, or belongs to other data or another kernel",
    7: "numerical failure",
    8: "insufficient memory, disk or device",
    9: "predictions are finished, but the report could not be drawn: ntkpipe report run_dir=DIR draws it again",
    75: "stopped by SIGTERM or SIGUSR1, or the cluster's head was lost: repeat the same command to continue",
    130: "interrupted: repeat the same command to continue",
}
_OWN_FLAGS = """\
  --multirun NAME=A,B ...  one run for every value or combination of values, in folders below run_dir
  --cfg job                print the composed configuration and exit
  --config-dir FOLDER      a folder of your own configuration files, such as FOLDER/experiment/mine.yaml"""


def show_help(words: Sequence[str]) -> int:
    """Print the help about a word, and return the exit code.

    Args:
        words: a command, a group such as `kernel` or `cluster.launch`, a choice such as `kernel=fcn`, or a setting. No
            word prints the overview, and `format=markdown` prints the whole reference as a page.

    Raises:
        ConfigError: if no command, group or setting has that name.
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
    """Return the overview: commands, groups of settings and exit codes."""
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
    """Return the help of one command, as lines."""
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
        choice = word.partition("=")[2]
        return _of_choice(name, choice) if name in groups() and choice in _choices(name) else _of_group(name)
    if name in reference():
        return _of_setting(reference()[name])
    for command in COMMANDS:
        if name in COMMANDS[command].own:
            own = COMMANDS[command].own[name]
            return [f"{name}={own.default or 'none'}", f"  of ntkpipe {command}: {own.text}"]
    same = [one for one in reference() if one.rpartition(".")[2] == name]
    if len(same) == 1:
        return _of_setting(reference()[same[0]])
    if not same and (meant := other_names.meant(name)):
        raise ConfigError(f"there is no command, group or setting {word!r}. Did you mean {' or '.join(meant)}?")
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


def _of_choice(group: str, choice: str) -> list[str]:
    """Return the help of one choice of a group, with the settings that it uses and their values for it."""
    from omegaconf import OmegaConf

    from ntkpipe.run.meanings import MEANINGS  # imports much

    own = OmegaConf.load(config_folder() / group.replace(".", "/") / f"{choice}.yaml")
    values = {str(name): value for name, value in OmegaConf.to_container(own).items()}  # type: ignore[union-attr]
    lines = _wrapped(f"{group.replace('.', '/')}={choice}: {_choices(group)[choice]}", "")
    for setting in _inside(group):
        needs = [need for need in MEANINGS[setting.name] if need.setting == f"{group}.kind"]
        if setting.name != f"{group}.kind" and all(choice in need.values for need in needs):
            default = values.get(setting.name.rpartition(".")[2], setting.default)
            lines += ["", *_of_setting(replace(setting, default=default), brief=True)]
    return lines


def _of_setting(setting: Setting, *, brief: bool = False) -> list[str]:
    lines = [setting.line(), *_wrapped(f"{setting.takes}: {setting.text}", "    ")]
    if brief:
        return lines
    from ntkpipe.run.meanings import MEANINGS  # imports much

    for need in MEANINGS[setting.name]:
        values = ", ".join(map(shown, need.values))
        chooser = (
            need.setting.removesuffix(".kind").replace(".", "/") if need.setting.endswith(".kind") else need.setting
        )
        where = "".join(f", where {name} is {' or '.join(map(shown, one))}" for name, one in need.where.items())
        lines += _wrapped(f"used only with {chooser}={values}{where}", "    ")
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
    """Return the choices of a group with the comments of their files; empty for a group with only one choice."""
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
    """Return the reference as a page in Markdown, which is docs/settings.md."""
    lines = [
        "# Commands and settings",
        "",
        "This page lists every command and setting. `make docs` makes it from the texts of `ntkpipe help`.",
        "Give a setting as `NAME=VALUE` and a choice as `GROUP=NAME`.",
        "Numbers may be written `1e3`, `2**0.5`, `sqrt(2)` or `pi/2`. A list of one value may be written as that value. "
        "`null` means no value.",
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
        "| command | what it does |",
        "|---|---|",
        *(f"| `{name}` | {_cell(command.text)} |" for name, command in COMMANDS.items()),
    ]
    for name, command in COMMANDS.items():
        own = {n: o for n, o in command.own.items() if not n.startswith("profile.") and "/" not in n}
        if own:
            lines += ["", f"### Settings of `{name}`", "", "| setting | default | meaning |", "|---|---|---|"]
            lines += [f"| `{n}` | `{shown(o.default)}` | {_cell(o.text)} |" for n, o in own.items()]
    for group in ("", *groups()):
        about = groups().get(group, "Settings that belong to no group.")
        lines += ["", f"## {group or 'the run'}", "", _cell(about)]
        if choices := _choices(group) if group else {}:
            lines += ["", f"| `{group.replace('.', '/')}=` | |", "|---|---|"]
            lines += [f"| `{name}` | {_cell(text)} |" for name, text in choices.items()]
        lines += ["", "| setting | default | takes | meaning |", "|---|---|---|---|"]
        for one in _inside(group):
            lines.append(f"| `{one.name}` | `{shown(one.default)}` | {one.takes} | {_cell(one.text)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Return a text as a cell of a Markdown table, with links to the pages that it names."""
    return re.sub(r"\bdocs/([\w-]+\.md)", r"[\1](\1)", text.replace("|", "\\|"))
