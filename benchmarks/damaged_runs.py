"""Finished and killed runs on real images for random damage, and the results that they must give.

Every run is a folder with `store` (images, tiles, solver states), `a` (the run) and `exports` (its predictions as files).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ntkpipe.cli.main import main
from ntkpipe.config import RunConfig
from ntkpipe.errors import NtkpipeError
from ntkpipe.events.lines import plain_lines
from ntkpipe.predictions.read import read_predictions
from ntkpipe.run.run_dir import RunDir
from ntkpipe.run.stages import RunAtWork
from ntkpipe.storage.store import open_store
from ntkpipe.tasks.serial import SerialExecutor
from ntkpipe.tiles.catalogue import list_gram_stores
from ntkpipe.tiles.store import GramStore

EXPORTS = ("parquet", "csv", "npz")
SOLVERS = ("krylov", "cg", "cholesky", "eigh")
# Where a run is killed: at this write of an object whose key or file name matches.
DEATHS = {
    "finished": None,
    "in gram": (r"receipts/train/", 6),
    "in solve": (r"(krylov|cg|cholesky|eigh)/", 4),
    "in predict": (r"uncertainty/|predictions.zarr|leave_one_out", 3),
}
# The first pattern that matches the path of an object says what kind it is.
KINDS = {
    "Gram tiles": r"store/gram/.*/c/",
    "Gram receipts": r"store/gram/.*/receipts/",
    "Gram segments": r"store/gram/.*/segments/",
    "Gram manifest, metadata": r"store/gram/",
    "prepared images": r"store/data/.*/c/",
    "labels, manifest, sources": r"store/data/",
    "Krylov basis": r"store/krylov/",
    "cg states": r"store/cg/",
    "Cholesky factor": r"store/cholesky/",
    "eigenvectors": r"store/eigh/",
    "variance batches": r"store/uncertainty/",
    "progress board, progress, log": r"store/runs/|a/progress.json|a/log.jsonl",
    "tuning": r"store/tuning/",
    "run.json": r"a/run.json",
    "receipts of stages": r"a/stages/",
    "kept solutions": r"a/solve/",
    "predictions": r"a/predictions.zarr/",
    "metrics, leave-one-out": r"a/metrics.json|a/leave_one_out",
    "figures, report": r"a/report/",
    "exported files": r"exports/|a/exports.json",
    "leftovers of killed writers": r"a/.*\.partial/",
}


@dataclasses.dataclass(frozen=True)
class Base:
    """An inactive run that is copied and damaged.

    Args:
        path: folder of the run.
        words: words of the command that continues it.
        state: a key of `DEATHS`.
    """

    path: Path
    words: tuple[str, ...]
    state: str

    @property
    def name(self) -> str:
        return self.path.name

    def objects(self, folder: Path) -> dict[str, list[Path]]:
        """Return the files of a copy by kind, without leases and temporary files."""
        found: dict[str, list[Path]] = {}
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            if ".leases" in path.parts or path.name.endswith(".partial"):
                continue
            found.setdefault(kind_of(path.relative_to(folder)), []).append(path)
        return found


def kind_of(path: Path) -> str:
    """Return the kind of an object from its path within the folder of its run."""
    return next((kind for kind, pattern in KINDS.items() if re.match(pattern, str(path))), "others")


def make_bases(work: Path, data: Path, n: int, p: int) -> tuple[list[Base], dict[str, dict[str, np.ndarray]]]:
    """Return a run of every solver in every state, made once in `work`, and the correct arrays for each solver."""
    images = work / "images.npz"
    if not images.exists():
        work.mkdir(parents=True, exist_ok=True)
        with np.load(data, allow_pickle=False) as of:
            first = {
                name: of[name][: n if "train" in name else p] for name in ("x_train", "y_train", "x_test", "y_test")
            }
        np.savez(images, **first)
    bases, truths = [], {}
    for solver in SOLVERS:
        direct = solver in ("cholesky", "cg")
        words = (
            *("run", "data=npz", f"data.path={images}", "kernel.dtype=float64", "grid.edge=64", "cluster=serial"),
            *(
                f"solver={solver}",
                f"predict.times={'[inf]' if direct else '[10,1e4,inf]'}",
                "predict.ridges=[1e-6,1e-3]",
            ),
            *("predict.covariance=diagonal", "store.url=store", "run_dir=a"),
            *(("solver.checkpoint_every=3",) if solver in ("krylov", "cg") else ()),
            *(() if solver == "cg" else ("predict.selection=loo",)),
        )
        for state, death in DEATHS.items():
            base = Base(work / f"{solver} {state}".replace(" ", "-"), words, state)
            if not (base.path / "made").exists():
                shutil.rmtree(base.path, ignore_errors=True)
                base.path.mkdir()
                _make(base, death)
                (base.path / "made").touch()
            bases.append(base)
            if state == "finished":
                truths[solver] = arrays_of(base.path)
    return bases, truths


def _make(base: Base, death: tuple[str, int] | None) -> None:
    run = [sys.executable, "-m", "ntkpipe"] if death is None else [sys.executable, __file__, death[0], str(death[1])]
    with (base.path / "made.log").open("wb") as log:
        code = subprocess.run(
            [*run, *base.words],
            cwd=base.path,
            stdout=log,
            stderr=log,
            check=False,
        ).returncode
    log_text = (base.path / "made.log").read_text()
    if code != (0 if death is None else -9):
        raise RuntimeError(f"{base.name} ended with {code}:\n{log_text[-2000:]}")
    (base.path / "made.log").unlink()
    store = open_store(str(base.path / "store"))
    for info in list_gram_stores(store):
        gram = GramStore.open(store, info.name)
        gram.compact(4)  # some receipts in segments, some not
    if death is None:
        code, text = command(base.path, "verify", "run_dir=a", "repair=false", "tiles=0", "rows=0")
        assert code == 0, f"before any damage:\n{text}"
        for form in EXPORTS:
            code, text = command(base.path, "export", "run_dir=a", f"format={form}", f"path=exports/predictions.{form}")
            assert code == 0, text


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    """Return the predictions, bounds and variances of a run."""
    found = read_predictions(folder / "a" / "predictions.zarr")
    return {name: array for name, (array, _) in found.arrays().items()}


def command(folder: Path, *words: str) -> tuple[int, str]:
    """Run `ntkpipe` in this process, with `folder` as the current one; its exit code and what it said."""
    said = io.StringIO()
    with _inside(folder), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(words)
    return code, said.getvalue()


def go_on(folder: Path, config: RunConfig, stages: Sequence[str]) -> tuple[int, str]:
    """Continue a run as `ntkpipe run`, `gram`, `solve` or `predict` does, without composing settings, which takes 1 s."""
    said = io.StringIO()
    handler, logger = logging.StreamHandler(said), logging.getLogger("ntkpipe")
    logger.addHandler(handler)

    def echo(line: str) -> None:
        said.write(f"{line}\n")

    try:
        with _inside(folder):
            job = RunAtWork(RunDir.create(config), SerialExecutor, plain_lines(echo))
            with job.at_work():
                for stage in stages:
                    getattr(job, stage)()
    except NtkpipeError as error:
        echo(f"error: {error}")
        return error.exit_code, said.getvalue()
    finally:
        logger.removeHandler(handler)
    return 0, said.getvalue()


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file by its path in the folder."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()
    }


def _die_at(pattern: str, count: int, words: list[str]) -> None:
    """Run `ntkpipe`, and kill this process (SIGKILL) before the `count`-th matching file gets its final name."""
    left, replace, link = [count], os.replace, os.link

    def counted(target: object) -> None:
        if re.search(pattern, str(target)):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), 9)

    def replacing(source, target, **options):
        counted(target)
        replace(source, target, **options)

    def linking(source, target, **options):
        counted(target)
        link(source, target, **options)

    os.replace, os.link = replacing, linking
    sys.exit(main(words))


if __name__ == "__main__":
    _die_at(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
