from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ntkpipe.tasks import environment

PROGRAM = """
{before}
from ntkpipe.tasks.environment import keep_compiled
keep_compiled()
import jax, jax.numpy as jnp
print(jax.jit(lambda x: jnp.tanh(x) @ x)(jnp.ones((3, 3)))[0, 0].item().hex())
"""
# Whether JAX has been imported, and has compiled, before it is told.
EARLY = "import jax; jax.jit(lambda x: x + 1)(1.0)"


def run(folder: Path, before: str = "", **variables: str) -> str:
    inherited = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    settings = {"XDG_CACHE_HOME": str(folder / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", **variables}
    code = PROGRAM.format(before=before)
    done = subprocess.run([sys.executable, "-c", code], env={**inherited, **settings}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def kept(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*-cache") if p.is_file())


@pytest.mark.parametrize("before", ["", EARLY])
def test_what_a_process_compiles_is_kept_and_damage_does_no_harm(tmp_path, before):
    made = run(tmp_path, before)
    programs = kept(tmp_path / "cache" / "ntkpipe" / "compiled")
    assert any("lambda" in p.name for p in programs)
    for path in programs:
        path.write_bytes(path.read_bytes()[:50])
    assert run(tmp_path, before) == made


@pytest.mark.parametrize("by", ["environment", "configuration"])
def test_a_users_own_folder_wins(tmp_path, by):
    mine = str(tmp_path / "mine")
    if by == "environment":
        run(tmp_path, JAX_COMPILATION_CACHE_DIR=mine)
    else:
        run(tmp_path, f"import jax; jax.config.update('jax_compilation_cache_dir', {mine!r})")
    assert kept(tmp_path / "mine")
    assert not kept(tmp_path / "cache")


def test_a_folder_is_of_one_kind_of_processor(monkeypatch):
    """Virtual machines of several generations have one name: what they can do tells them apart."""
    folders = set()
    for name, flags in (("EPYC", "avx2"), ("EPYC", "avx2 avx512f"), ("Xeon", "avx2")):
        lines = {"model name": name, "flags": flags}
        monkeypatch.setattr(environment, "_line_of_cpuinfo", lines.get)
        folders.add(environment.compilation_cache("root"))
    assert len(folders) == 3
