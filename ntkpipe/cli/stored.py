"""Commands on a stored run or a store, which compose no configuration.

They are `status`, `export`, `report`, `compare`, `verify` and `clean`.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ntkpipe.cli import streams
from ntkpipe.cli.arguments import settings, truth, whole
from ntkpipe.cli.commands import COMMANDS
from ntkpipe.cli.session import Session
from ntkpipe.cli.stages import echo, listener, summarise
from ntkpipe.errors import ConfigError, CorruptionError, HeldError, IncompleteError
from ntkpipe.report.drawing import can_draw, without_figures
from ntkpipe.run import clean, status, verify
from ntkpipe.run.compare import compare
from ntkpipe.run.exports import export
from ntkpipe.run.opened import Run
from ntkpipe.run.prepare import reopen
from ntkpipe.run.report_inputs import write_report
from ntkpipe.run.run_dir import RunDir
from ntkpipe.run.stages import RunAtWork
from ntkpipe.run.sweep import Sweep
from ntkpipe.run.watching import watched_runs
from ntkpipe.storage.store import open_store


def run_stored(command: str, arguments: Sequence[str]) -> int:
    """Run one command, and return the exit code."""
    return {
        "status": _status,
        "export": _export,
        "report": _report,
        "compare": _compare,
        "verify": _verify,
        "clean": _clean,
    }[command](arguments)


def _open(values: dict[str, str | None], command: str) -> RunDir:
    if not values["run_dir"]:
        raise ConfigError(f"ntkpipe {command} needs run_dir=DIR, the folder of a run")
    return RunDir.open(values["run_dir"], store=values.get("store.url"))


def _status(arguments: Sequence[str]) -> int:
    words = ["watch=true" if word == "--watch" else word for word in arguments]
    values = settings(words, COMMANDS["status"].defaults(), "status")
    if values["run_dir"] is None and values["store.url"] is not None:
        url = values["store.url"]
        return _watched(lambda: _of_store(url, values["run"]), values)
    if (sweep := _sweep(values)) is not None:
        return _watched(lambda: _of_sweep(sweep), values)
    run = _open(values, "status")
    return _watched(lambda: status.status(run), values)


def _sweep(values: dict[str, str | None]) -> Sweep | None:
    return Sweep.find(values["run_dir"], store=values["store.url"]) if values["run_dir"] else None


def _of_sweep(sweep: Sweep) -> tuple[list[str], bool]:
    """Return the status of every run below a folder, and whether all runs are finished."""
    lines, finished = [], 0
    for path in sweep.runs:
        run = sweep.open(path)
        if run is None:
            lines.append(f"{path}: to do")
            continue
        of_run, is_finished = status.status(run)
        lines += of_run
        finished += is_finished
    count = len(sweep.runs)
    what = f"sweep over {sweep.axis}" if sweep.axis else "runs"
    return [f"{sweep.path}: {what}, {finished} of {count} finished", *lines], finished == count


def _of_store(url: str, name: str | None) -> tuple[list[str], bool]:
    lines = watched_runs(url, name)
    if not lines:
        raise IncompleteError(f"no run {'of that name ' if name else ''}writes to {url}: check store.url")
    return lines, not any(": running, " in line for line in lines)


def _watched(look: Callable[[], tuple[list[str], bool]], values: dict[str, str | None]) -> int:
    """Print the lines that `look` returns; with `watch=true`, repeat until the run is finished, and print changes."""
    again, pause = truth("watch", values["watch"]), whole("every", values["every"])
    shown: list[str] = []
    while True:
        lines, finished = look()
        if new := [line for line in lines if line not in shown]:
            print("\n".join(new), flush=True)
        if finished or not again or streams.unread():
            return 0 if finished else IncompleteError.exit_code
        shown = lines
        time.sleep(pause)


def _export(arguments: Sequence[str]) -> int:
    values = settings(arguments, COMMANDS["export"].defaults(), "export")
    run = _open(values, "export")
    path, form = values["path"], values["format"] or "parquet"
    if path is None:
        path = str(run.path / f"predictions.{form}")
    print(export(run, Run(run).predictions(), path, form, overwrite=truth("overwrite", values["overwrite"])))
    return 0


def _compare(arguments: Sequence[str]) -> int:
    known = COMMANDS["compare"].defaults()
    words = [word for word in arguments if word.partition("=")[0] in known]
    folders = [word.removeprefix("run_dir=") for word in arguments if word not in words]
    values = settings(words, known, "compare")
    if not folders:
        raise ConfigError("ntkpipe compare needs folders of runs, such as ntkpipe compare runs/*")
    made = compare(folders)
    print(made)
    if values["path"] is not None:
        print("\n".join(["", *(str(path) for path in made.write(_folder(values["path"])))]))
        if not can_draw():
            print(without_figures("the same command"))
    return 0


def _report(arguments: Sequence[str]) -> int:
    values = settings(arguments, COMMANDS["report"].defaults(), "report")
    sweep = _sweep(values)
    runs = (_open(values, "report"),) if sweep is None else sweep.begun()
    if sweep is None and values["path"] is not None:
        runs[0].require("predict")
    folder = None if values["path"] is None else _folder(values["path"])  # created after all checks
    with Session() as session:
        for run in runs:
            if sweep is not None and run.receipt("predict") is None:
                echo(f"report   {run.path} has no predictions yet")
                continue
            if folder is not None:  # the run itself does not change
                echo(f"report   {write_report(run, reopen(run), folder if sweep is None else folder / run.path.name)}")
                continue
            with run.held():
                RunAtWork(run, lambda run=run: session.executor(run.config), listener()).report()
    if sweep is not None:
        print("\n".join(summarise(sweep, folder)))
    return 0


def _folder(path: str) -> Path:
    """Return a folder that the user named, which is created if it does not exist."""
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"path={path} cannot be made ({error.strerror}): name a folder") from error
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"path={path} cannot be written to: name another folder")
    return folder


def _verify(arguments: Sequence[str]) -> int:
    values = settings(arguments, COMMANDS["verify"].defaults(), "verify")
    run = _open(values, "verify")
    mend = truth("repair", values["repair"])
    tiles, rows = whole("tiles", values["tiles"]), whole("rows", values["rows"])
    seed = secrets.randbelow(2**31) if values["seed"] is None else whole("seed", values["seed"])
    if not mend and (who := run.holder()) is not None:
        raise HeldError(who)  # partly written objects would look damaged
    with Session() as session, run.held() if mend else contextlib.nullcontext():
        context = verify.try_reopen(run)
        found = verify.verify(run, context)
        if context is not None and not found.damaged and (tiles or rows):
            # Without a seed, every check makes a new random choice, so that repeated checks cover more.
            try:
                verify.recheck(run, context, found, session.executor(run.config), tiles, rows, seed)
            except CorruptionError as error:  # objects read there were intact a moment ago
                raise CorruptionError(without_advice(str(error))) from error
        for name in found.checked:
            print(f"checked  {name}")
        for text in found.harmless:
            print(f"harmless {text}")
        for text in found.damaged:
            print(f"damaged  {without_advice(text)}")
        if not found.damaged:
            print(
                "all stored objects agree with their receipts"
                + (f"; random choice: seed={seed}" if tiles or rows else "")
            )
            return 0
        if not mend:
            return CorruptionError.exit_code
        # Only stages that the run had finished are repeated.
        stages = ("gram", "solve", "predict", "report")
        had = [stage for stage in stages if stage in found.stages or run.receipt(stage) is not None]
        verify.discard_damaged(run, context, found)
        work = RunAtWork(run, lambda: session.executor(run.config), listener())
        for stage in had or ["gram"]:
            getattr(work, stage)()
        left = verify.verify(run, verify.try_reopen(run)).damaged
        for text in left:
            print(f"still damaged  {without_advice(text)}")
        print("repaired" if not left else "not everything could be repaired", file=sys.stdout)
        return CorruptionError.exit_code if left else 0


def without_advice(text: str) -> str:
    """Return the text about damage without its advice to run `ntkpipe verify`, which is already running."""
    return re.sub(r"[.:,;]? *\b[Rr]un `ntkpipe verify`[^.;]*", "", text)


def _clean(arguments: Sequence[str]) -> int:
    values = settings(arguments, COMMANDS["clean"].defaults(), "clean")
    clean.clean(open_store(values["store.url"] or "./store"), values["delete"], print)
    return 0
