"""What the pages say can be typed: every command composes, quick ones run, links lead somewhere, and the Python of every page runs."""

from __future__ import annotations

import re
import shlex
import warnings
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


def test_commands_can_be_typed_in_any_shell():
    """zsh reads brackets without quotes as a pattern of file names."""
    assert [c for c in _commands() if re.search(r"""(^|\s)[\w./]+=[^\s"']*[\[\](){}*]""", c)] == []


def test_commands_are_found():
    assert len(_commands()) > 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}


def _blocks(page):
    """Its Python blocks and, of each, why it is not run: `<!-- not run: REASON -->` stands on the line before."""
    found = re.findall(r"(?:<!-- not run: ([^\n]+) -->\n)?```python\n(.*?)```", page.read_text(), re.DOTALL)
    return [(code, reason) for reason, code in found]


def _given(page: str) -> dict[str, object]:
    """Arrays that a page takes as the reader's."""
    rng = np.random.default_rng(0)
    x, y, x_test, y_test = rng.normal(size=(40, 5)), rng.integers(0, 3, 40), rng.normal(size=(10, 5)), np.arange(10) % 3
    given: dict[str, object] = {"__name__": "example"}
    if page == "README.md":
        given |= {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test}
    if page == "spectrum.md":
        index = np.arange(1, 3001.0)
        given |= {"eigenvalues": index**-2, "coefficients": index**-1.5}
    return given


WITH_CODE = [page for page in PAGES if _blocks(page)]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_python_of_a_page_runs(page, tmp_path, monkeypatch):
    """All blocks one after another, as a reader types them, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    scope = _given(page.name)
    with blank_figures(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for code, reason in _blocks(page):
            if not reason:
                exec(compile(code, page.name, "exec"), scope)
    assert set(scope) - set(_given(page.name)) or all(reason for _, reason in _blocks(page))


def test_code_is_found():
    assert {"README.md", "tutorial.md", "python.md", "data.md"} <= {page.name for page in WITH_CODE}


QUICK = [command for command in _commands() if command.split()[1] in ("describe", "catapult", "help", "completion")]


@pytest.mark.parametrize("command", [command for command in QUICK if "run_dir=" not in command])
def test_a_quick_command_of_the_pages_runs(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out


@pytest.mark.slow
def test_the_tutorial_runs_in_its_order(tmp_path, monkeypatch, capsys):
    """Its commands and its first Python block; not what names a folder or an archive of the reader's."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "tutorial.md").read_text()
    done = []
    with blank_figures():
        for label, code in re.findall(r"```(bash|python)\n(.*?)```", text[: text.index("## 6.")], re.DOTALL):
            if label == "python":
                exec(compile(code, "tutorial", "exec"), {"__name__": "example"})
                continue
            for line in code.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] != ["ntkpipe"] or "NAME" in line or "cifar" in line:
                    continue
                files = [str(one) for word in words if word == "runs/*" for one in sorted(Path("runs").iterdir())]
                words = [word for word in words[1:] if word != "runs/*"] + files
                assert main(words) == 0, (line, capsys.readouterr().err)
                done.append(words[0])
    assert done == ["run", "run", "run", "compare", "run", "plan"]
    assert len(list(Path("runs").iterdir())) == 4
