from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import ntkpipe
from ntkpipe.cli.commands import COMMANDS
from ntkpipe.cli.help import EXIT_CODES
from ntkpipe.cli.main import STORED
from ntkpipe.errors import NtkpipeError

ROOT = Path(__file__).resolve().parents[2]


def test_help_version_and_unknown_commands(command):
    assert command("--version")[:2] == (0, f"{ntkpipe.__version__}\n")
    for word in ("--help", "-h", "help"):
        code, out, _ = command(word)
        assert code == 0
        assert all(f"  {name} " in out for name in COMMANDS)
    code, out, _ = command()
    assert code == 2
    assert "usage" in out
    code, _, err = command("xyzzy")  # like no command
    assert code == 2
    assert all(name in err for name in COMMANDS)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("runn",), "did you mean ntkpipe run?"),
        (("statsu",), "did you mean ntkpipe status?"),
        (("kernel.depth=3",), "give a command first, such as ntkpipe run kernel.depth=3"),
        (("status", "run_dri=x"), "Did you mean run_dir=x?"),
        (("verify", "run_dir=x", "tiles=many"), "is not a run"),
    ],
)
def test_what_a_misspelt_command_was_meant_for(command, words, hint):
    code, _, err = command(*words)
    assert (code, hint in err) == (2, True), err


def test_every_exit_code_is_documented():
    codes = {cls.exit_code for cls in [NtkpipeError, *NtkpipeError.__subclasses__()]}
    assert codes <= set(EXIT_CODES)


@pytest.mark.parametrize("name", sorted(STORED))
def test_stored_commands_refuse_unknown_settings(command, name):
    code, _, err = command(name, "kernel.depth=3")
    assert code == 2
    assert "kernel.depth" in err


@pytest.mark.parametrize("name", sorted(set(STORED) - {"clean"}))
def test_stored_commands_want_a_run(command, tmp_path, name):
    assert command(name)[0] == 2
    code, _, err = command(name, "run_dir=nowhere")
    assert code == 2
    assert "is not a run" in err
    (tmp_path / "other").mkdir()
    assert command(name, "run_dir=other")[0] == 2
    assert not list((tmp_path / "other").iterdir())


@pytest.mark.parametrize(
    "start", [["-m", "ntkpipe", "plan"], [str(ROOT / "jobs" / "ntkpipe_job.py"), "plan"]], ids=["module", "job"]
)
def test_starts_as_a_module_and_as_a_script(tmp_path, start):
    words = [sys.executable, *start, "cluster=serial", "data=synthetic", "data.n_train=5000"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "5,000 x 5,000" in done.stdout
    assert not list(tmp_path.iterdir())  # a plan writes nothing
    refused = subprocess.run([*words, "kernel.depht=1"], cwd=tmp_path, capture_output=True, text=True)
    assert (refused.returncode, "Traceback" in refused.stderr) == (2, False)


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    program = f"{sys.executable} -m ntkpipe run --help"
    done = subprocess.run(
        ["bash", "-c", f"{program} | head -1; exit ${{PIPESTATUS[0]}}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr
