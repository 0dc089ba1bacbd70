"""What help says of commands and settings, the page made of it, and completion."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ntkpipe.cli import other_names, stages
from ntkpipe.cli.commands import COMMANDS
from ntkpipe.cli.completing import SCRIPTS, candidates
from ntkpipe.cli.folder import config_folder
from ntkpipe.cli.help import page
from ntkpipe.config.reference import groups, reference
from ntkpipe.run.meanings import settings

ROOT = Path(__file__).resolve().parents[2]


def test_every_setting_and_group_has_a_text():
    assert list(reference()) == list(settings())
    assert [name for name, one in reference().items() if name.rpartition(".")[2] != "kind" and len(one.text) < 8] == []
    assert all(groups().values())
    assert reference()["kernel.w_std"].text.startswith("standard deviation of the weights")
    assert reference()["cluster.memory_gib"].text.endswith("or from what the nodes have.")


def test_names_of_other_libraries_lead_to_settings():
    assert set(other_names.NAMES) <= set(reference())
    assert other_names.meant("kernel.sigma_w") == ["kernel.w_std"]
    assert other_names.meant("solver.iterations") == ["solver.max_steps"]
    # A name of a setting is never among them, so that an existing setting is not said to be unknown.
    assert not {name for names in other_names.NAMES.values() for name in names.split()} & set(reference())


def test_the_page_is_current():
    assert (ROOT / "docs" / "settings.md").read_text() == page(), "run: make docs"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(command, name):
    code, out, _ = command("help", name)
    assert (code, COMMANDS[name].text in " ".join(out.split())) == (0, True)
    if name not in ("help", "completion"):
        code, told, _ = command(name, "--help")
        assert (code, told in out) == (0, True)
    assert all(own in out for own in COMMANDS[name].own)


@pytest.mark.parametrize("name", stages.FUNCTIONS)
def test_settings_of_a_command_are_arguments_of_its_function(name):
    taken = inspect.signature(stages.FUNCTIONS[name]).parameters
    assert COMMANDS[name].composes
    assert "own" in taken or set(taken) - {"config", "session"} == set(COMMANDS[name].own)


@pytest.mark.parametrize(
    "name", ["kernel.depth", "solver", "cluster/launch", "experiment", "solver=krylov", "depth", "watch"]
)
def test_what_a_name_means(command, name):
    code, out, _ = command("help", name)
    assert (code, len(out) > 40) == (0, True)


def test_a_setting_is_told_with_its_type_default_and_reach(command):
    out = command("help", "kernel.depth")[1]
    assert out.startswith("kernel.depth=3\n    a whole number: hidden layers of `fcn`")
    assert "used only with kernel=fcn, cnn_vec" in out


def test_a_choice_is_explained_with_the_settings_that_it_uses_and_its_own_values(command):
    out = command("help", "kernel=attention")[1]
    assert out.startswith("kernel=attention: Convolutions, softmax attention")
    assert "\nkernel.blocks=1\n" in out  # conf/kernel/attention.yaml; the default of the group is 3
    assert not re.search(r"^kernel\.(length_scale|readout_depths|kind)=", out, re.MULTILINE)


@pytest.mark.parametrize("group", ["data", "kernel", "solver", "cluster", "cluster/launch"])
def test_every_choice_has_help(command, group):
    for path in sorted((config_folder() / group).glob("*.yaml")):
        code, out, _ = command("help", f"{group}={path.stem}")
        assert (code, out.startswith(f"{group}={path.stem}: ")) == (0, True)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("dept", "Did you mean kernel.depth?"),
        ("kind", "data.kind or"),
        ("qqq", "help lists"),
        ("uncertainty", "Did you mean predict.covariance?"),
    ],
)
def test_what_help_does_not_know(command, word, said):
    code, _, err = command("help", word)
    assert (code, said in err) == (2, True), err


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("r", {"run ", "report "}),
        ("run solver=", {"solver=cg ", "solver=krylov "}),
        ("run kernel.de", {"kernel.depth="}),
        ("plan plan.s", {"plan.sizes="}),
        ("run --mu", {"--multirun "}),
        ("run kernel=fcn,re", {"kernel=fcn,resnet "}),
        ("run solver=cg,kr", {"solver=cg,krylov "}),
        ("run data.download=", {"data.download=true ", "data.download=false "}),
        ("run kernel.pool=", {"kernel.pool=gap ", "kernel.pool=vec ", "kernel.pool=lap "}),
        ("run data.path=", {"data.path=mine.npz ", "data.path=sets/"}),
        ("status run_dir=se", {"run_dir=sets/"}),
        ("export format=p", {"format=parquet "}),
        ("help kernel.dep", {"kernel.depth "}),
        ("nonsense ker", set()),
    ],
)
def test_completion(tmp_path, monkeypatch, line, offered):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.npz").touch()
    (tmp_path / "sets").mkdir()
    *words, current = line.split(" ")
    found = set(candidates(words, current))
    assert offered <= found
    assert offered or not found


def test_a_shell_asks_without_importing_much(tmp_path):
    def ask(*words: str) -> tuple[int, str, str]:
        code = (
            "import sys; from ntkpipe.cli.main import main; code = main(sys.argv[1:]);"
            "sys.exit(code or any(name in sys.modules for name in ('numpy', 'hydra', 'jax', 'ray')))"
        )
        done = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    assert ask("--complete", "bash", "ntkpipe run kernel.wid") == (0, "kernel.widen=\nkernel.width=\n", "")
    assert ask("--complete", "bash", "ntkpipe run solver=kr") == (0, "krylov \n", "")
    assert ask("--complete", "fish", "ntkpipe run solver=kr") == (0, "solver=krylov\n", "")
    (tmp_path / "my data").mkdir()
    words = f"ntkpipe run data.path={tmp_path}/my"
    assert ask("--complete", "bash", words) == (0, f"{tmp_path}/my\\ data/\n", "")
    assert ask("--complete", "zsh", words) == (0, f"data.path={tmp_path}/my\\ data/\n", "")
    assert ask("--complete", "fish", words) == (0, f"data.path={tmp_path}/my data/\n", "")
    for words in ((), ("bash",), ("bash", "ntkpipe run 'a"), ("zsh", "")):
        code, _, err = ask("--complete", *words)
        assert (code, err) == (0, "")
    assert ask("completion", "bash") == (0, SCRIPTS["bash"], "")
    assert ask("completion", "tcsh")[0] == 2
