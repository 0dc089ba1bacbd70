"""What the pages say can be typed: every command composes, links lead somewhere, and the code of the first pages runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from blank_figures import blank_figures

from ntkpipe.cli import compose
from ntkpipe.cli.commands import COMMANDS
from ntkpipe.cli.main import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACEHOLDERS = ("...", "FOLDER", "OUT.", "URL", "HOST", "IMAGE", "COMMAND", "SETTING", "SOLVER", "NAME")


def _commands() -> list[str]:
    """Every command that a page shows, in a block of a shell or in the first cell of a table, without what follows in a comment."""
    found: dict[str, None] = {}
    for page in PAGES:
        text = page.read_text()
        blocks = [code for label, code in re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL) if label in ("", "bash")]
        lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
        lines += re.findall(r"`(ntkpipe [^`]+)`", text)
        for line in lines:
            command = re.sub(r"\s+", " ", re.split(r" #| > | \| ", line)[0]).strip()
            if command.startswith("ntkpipe ") and not any(word in command for word in PLACEHOLDERS):
                found[command] = None
    return list(found)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder that has every file which a page names, so that its kind is recognised."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", _commands())
def test_a_command_of_the_pages_is_one(command, folder, monkeypatch, capsys):
    words = shlex.split(command)[1:]
    name, rest = words[0], [word for word in words[1:] if "|" not in word and word[0] != "["]
    if name in ("help", "completion", "--version", "--help") or "--help" in rest:
        assert main([name, *rest]) == 0, capsys.readouterr().err
        return
    assert name in COMMANDS, name
    known = COMMANDS[name]
    if not known.composes or any(word.startswith("data.new=") for word in rest):
        unknown = (
            {word.partition("=")[0] for word in rest if "=" in word} - set(known.own) - {"run_dir", "data.new", "path"}
        )
        assert not unknown
        return
    for word in rest:
        if word.startswith(("data.path=", "kernel.path=", "data.test_path=")):
            path = folder / word.partition("=")[2]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    called = []
    monkeypatch.setitem(compose.FUNCTIONS, name, lambda config, session, **own: called.append(config))
    assert main([name, *rest]) == 0, capsys.readouterr().err
    assert called


def test_commands_are_found():
    assert len(_commands()) > 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == {page.name for page in (ROOT / "docs").glob("*.md")}


@pytest.mark.parametrize("name", ["README.md", "docs/tutorial.md"])
def test_code_of_the_first_pages_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    given = {  # what the README takes as the reader's
        "x_train": rng.normal(size=(40, 5)),
        "y_train": rng.integers(0, 3, 40),
        "x_test": rng.normal(size=(10, 5)),
        "y_test": rng.integers(0, 3, 10),
    }
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    assert blocks
    with blank_figures():
        for block in blocks:
            scope = {"__name__": "example", **given}
            exec(compile(block, name, "exec"), scope)
            assert not {"p", "solution"} & set(scope) or scope["p"].mean.size
