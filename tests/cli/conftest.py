from __future__ import annotations

import pytest

from ntkpipe.cli.main import main


@pytest.fixture
def command(capsys, tmp_path, monkeypatch):
    """Run `ntkpipe ...` in this process, in an empty folder; gives the exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main(words)
        except SystemExit as stop:  # argparse, and Hydra's --help
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run
