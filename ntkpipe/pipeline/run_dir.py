"""A run's own folder: its configuration, the receipts of its stages, its progress and its log.

```
run.json            the configuration, as checked; marks the folder as a run
stages/<name>.json  receipt of a finished stage: what it was made of, when, how long
progress.json       what is going on now; overwritten every few seconds
log.jsonl           one event a line, append-only
predictions.zarr  metrics.json  report/
```
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ntkpipe import __version__
from ntkpipe.config import RunConfig, from_dict, to_dict
from ntkpipe.errors import ConfigError, IncompleteError
from ntkpipe.storage.store import ObjectStore, open_store

FORMAT = 1
STAGES = ("data", "gram", "solve", "predict", "report")
_RUN_FILE = "run.json"
# Where tasks run does not change what they give, so a run may be resumed with other workers or more memory.
_FREE_SETTINGS = ("cluster", "run_dir")


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def digest(value: Any) -> str:
    """Short SHA-256 of a JSON-ready value, in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name in sorted(set(old) | set(new)):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += _differences(before, after, f"{prefix}{name}.")
        elif before != after:
            found.append(f"{prefix}{name}: {before} there, {after} now")
    return found


@dataclasses.dataclass(frozen=True)
class RunDir:
    """A run's folder and the configuration stored in it."""

    path: Path
    config: RunConfig

    @staticmethod
    def create(config: RunConfig) -> RunDir:
        """Start a run, or continue the one that is there with the same configuration.

        Raises:
            ConfigError: if the folder holds something else, or a run with another configuration.
        """
        path = Path(config.run_dir)
        if (path / _RUN_FILE).exists():
            stored = RunDir.open(path)
            old, new = (
                {k: v for k, v in to_dict(c).items() if k not in _FREE_SETTINGS} for c in (stored.config, config)
            )
            if differing := _differences(old, new):
                raise ConfigError(
                    f"{path} holds a run with another configuration ({'; '.join(differing)}). Give this one a run_dir "
                    "of its own: it reuses the stored Gram tiles, since those live in store.url."
                )
            return RunDir(path, config)
        if path.exists() and not path.is_dir():
            raise ConfigError(f"run_dir={path} is a file: name a folder")
        if path.exists() and (strangers := sorted(p.name for p in path.iterdir() if not _may_precede(p))):
            raise ConfigError(
                f"run_dir={path} is not empty and not a run (it holds {', '.join(strangers[:3])}): name a new folder"
            )
        (path / "stages").mkdir(parents=True, exist_ok=True)
        run = RunDir(path, config)
        run.write_json(
            _RUN_FILE, {"format": FORMAT, "created": now(), "ntkpipe": __version__, "config": to_dict(config)}
        )
        return run

    @staticmethod
    def open(path: str | os.PathLike[str]) -> RunDir:
        """An existing run.

        Raises:
            ConfigError: if the folder is not a run, or of a newer format.
        """
        file = Path(path) / _RUN_FILE
        if not file.exists():
            raise ConfigError(
                f"run_dir={path} is not a run (it has no {_RUN_FILE}): check the path, or start one with ntkpipe run"
            )
        try:
            stored = json.loads(file.read_text())
        except json.JSONDecodeError as error:
            raise ConfigError(f"{file} is not readable JSON ({error}): move the folder away and run again") from error
        if stored.get("format") != FORMAT:
            raise ConfigError(
                f"{file} has format {stored.get('format')}, this version reads {FORMAT}: use the ntkpipe that wrote it"
            )
        return RunDir(Path(path), from_dict(RunConfig, stored["config"]))

    @property
    def store(self) -> ObjectStore:
        """The folder as an object store (leases, checkpoints)."""
        return open_store(str(self.path))

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file atomically."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps(value, indent=1))
        os.replace(partial, target)

    def read_json(self, name: str) -> Any | None:
        """A JSON file, or None where absent."""
        try:
            return json.loads((self.path / name).read_text())
        except FileNotFoundError:
            return None

    def log(self, event: str, **facts: Any) -> None:
        """Append one event to the run log."""
        with (self.path / "log.jsonl").open("a") as file:
            file.write(json.dumps({"time": now(), "event": event, **facts}) + "\n")

    def receipt(self, stage: str) -> dict[str, Any] | None:
        """Receipt of a finished stage, or None."""
        return self.read_json(f"stages/{stage}.json")

    def require(self, stage: str) -> dict[str, Any]:
        """Receipt of a stage that must be finished.

        Raises:
            IncompleteError: naming the command that finishes it.
        """
        found = self.receipt(stage)
        if found is None:
            command = {"data": "gram", "gram": "gram", "solve": "solve", "predict": "predict"}.get(stage, "run")
            raise IncompleteError(
                f"stage {stage} of {self.path} is not finished: ntkpipe {command} run_dir={self.path}"
            )
        return found

    def finish(self, stage: str, seconds: float, **facts: Any) -> dict[str, Any]:
        """Write the receipt of a stage and log it."""
        receipt = {"stage": stage, "finished": now(), "seconds": round(seconds, 3), **facts}
        self.write_json(f"stages/{stage}.json", receipt)
        self.log("stage finished", **receipt)
        return receipt

    def forget(self, *stages: str) -> None:
        """Drop receipts, so that the stages run again."""
        for stage in stages:
            (self.path / "stages" / f"{stage}.json").unlink(missing_ok=True)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the run for this process.

        Raises:
            HeldError: saying which living process holds it.
        """
        with self.store.lease("run", holder={"what": f"run {self.path}"}):
            yield


def _may_precede(path: Path) -> bool:
    """Whether a file may lie in a run's folder before the run: what Hydra's sweeps and leases leave."""
    return path.name in ("multirun.yaml", ".leases", "stages", "store") or path.name.endswith(".partial")


@dataclasses.dataclass
class Progress:
    """Tells the terminal and `progress.json` how a stage goes, at most once in `every` seconds."""

    run: RunDir
    stage: str
    echo: Any
    every: float = 2.0
    _last: float = 0.0
    _started: float = dataclasses.field(default_factory=time.monotonic)

    def __call__(self, line: str, *, final: bool = False, **facts: Any) -> None:
        """Report; `facts` are JSON-ready (done, total, rate, remaining seconds, ...)."""
        elapsed = time.monotonic() - self._started
        if not final and time.monotonic() - self._last < self.every:
            return
        self._last = time.monotonic()
        self.run.write_json(
            "progress.json",
            {
                "stage": self.stage,
                "time": now(),
                "pid": os.getpid(),
                "elapsed": round(elapsed, 1),
                "line": line,
                "final": final,
                **facts,
            },
        )
        self.echo(f"{self.stage:<8} {line}")
