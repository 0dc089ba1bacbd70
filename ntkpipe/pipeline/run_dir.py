"""A run's own folder: its configuration, the receipts of its stages, its progress and its log.

```
run.json            the configuration, as checked; marks the folder as a run
stages/<name>.json  receipt of a finished stage: what it was made of, when, how long, and checksums of its files
progress.json       what is going on now; overwritten every few seconds
log.jsonl           one event a line, append-only
predictions.zarr  metrics.json  report/
```

JSON files but `metrics.json` carry a hash of themselves (`sha256`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ntkpipe import __version__
from ntkpipe.config import RunConfig, from_dict, to_dict
from ntkpipe.errors import ConfigError, HeldError, IncompleteError
from ntkpipe.storage.checksum import crc32c, sealed, unsealed
from ntkpipe.storage.plain import json_ready, with_numbers
from ntkpipe.storage.store import ObjectStore, open_store

_log = logging.getLogger(__name__)

FORMAT = 1
STAGES = ("data", "gram", "solve", "predict", "report")
_RUN_FILE = "run.json"
_LOG_FILE = "log.jsonl"
# Where tasks run and who watches does not change what they give: a run may be resumed with other workers.
_FREE_SETTINGS = ("cluster", "run_dir", "watch")
# Seconds between attempts to hold a run: a `status` that asks who holds it does so for a moment.
_PATIENCE = (0.1, 0.2)


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
        """A run that starts, or continues the one that is there with the same configuration. Writes nothing.

        `begin` writes the configuration, after all checks: a run that is refused leaves its folder free.

        Raises:
            ConfigError: if the folder holds something else, or a run with another configuration.
        """
        path = Path(config.run_dir)
        if (path / _RUN_FILE).exists():
            run = RunDir(path, config)
            run._require_same()
            return run
        if path.exists() and not path.is_dir():
            raise ConfigError(f"run_dir={path} is a file: name a folder")
        if (path / _LOG_FILE).exists():
            raise ConfigError(_gone(path))
        if path.exists() and (strangers := _strangers(path, Path(config.store.url))):
            raise ConfigError(
                f"run_dir={path} is not empty and not a run (it holds {', '.join(strangers[:3])}): name a new folder"
            )
        return RunDir(path, config)

    def begin(self) -> None:
        """Write the configuration, unless it is there; call it while the run is held and its inputs are checked.

        Raises:
            ConfigError: if another run has begun here since `create`.
        """
        if self.begun:
            self._require_same()
            return
        record = {"format": FORMAT, "created": now(), "ntkpipe": __version__, "config": to_dict(self.config)}
        self.write_json(_RUN_FILE, record)

    def _require_same(self) -> None:
        stored = RunDir.open(self.path)
        old, new = (
            {k: v for k, v in to_dict(c).items() if k not in _FREE_SETTINGS} for c in (stored.config, self.config)
        )
        if differing := _differences(old, new):
            raise ConfigError(
                f"{self.path} holds a run with another configuration ({'; '.join(differing)}). Give this one a run_dir "
                "of its own: it reuses the stored Gram tiles, since those live in store.url."
            )

    @staticmethod
    def open(path: str | os.PathLike[str]) -> RunDir:
        """An existing run.

        Raises:
            ConfigError: if the folder is not a run, or of a newer format.
        """
        file = Path(path) / _RUN_FILE
        if (Path(path) / _LOG_FILE).exists() and not file.exists():
            raise ConfigError(_gone(Path(path)))
        if not file.exists():
            # Of a run that has been here and not begun, only its lease is left.
            begun = (Path(path) / ".leases").is_dir()
            yet = " yet: the inputs of one are being checked, or were refused" if begun else ""
            raise ConfigError(
                f"run_dir={path} is not a run (it has no {_RUN_FILE}{yet}): check the path, or start one with ntkpipe run"
            )
        try:
            stored = _unsealed(json.loads(file.read_text(encoding="utf-8")))
            config = stored["config"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{file} is damaged ({error}): move the folder away and run again, which reuses the stored tiles"
            ) from error
        if stored.get("format") != FORMAT:
            raise ConfigError(
                f"{file} has format {stored.get('format')}, this version reads {FORMAT}: use the ntkpipe that wrote it"
            )
        return RunDir(Path(path), from_dict(RunConfig, config))

    @property
    def begun(self) -> bool:
        """Whether its inputs were checked and its configuration is written."""
        return (self.path / _RUN_FILE).exists()

    @property
    def store(self) -> ObjectStore:
        """The folder as an object store (leases, checkpoints)."""
        return open_store(str(self.path))

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON object atomically, sealed; numbers that are not finite as words (`storage.plain`)."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
        partial.write_text(
            json.dumps(sealed(json_ready(value, nan="nan")), indent=1, allow_nan=False), encoding="utf-8"
        )
        os.replace(partial, target)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON object, or None where it is absent or damaged: whatever it stood for is made again."""
        try:
            return _unsealed(json.loads((self.path / name).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            _log.warning("%s is damaged (%s): what it stands for is made again", self.path / name, error)
            return None

    def log(self, event: str, **facts: Any) -> None:
        """Append one event to the run log."""
        with (self.path / _LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(json_ready({"time": now(), "event": event, **facts}), allow_nan=False) + "\n")

    def receipt(self, stage: str) -> dict[str, Any] | None:
        """Receipt of a finished stage, or None; its numbers may be infinite, or none."""
        found = with_numbers(self.read_json(f"stages/{stage}.json"))
        return found if found is not None and found.get("stage") == stage else None

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

    def finish(self, stage: str, seconds: float, files: Iterable[Path] = (), **facts: Any) -> dict[str, Any]:
        """Write the receipt of a stage, with the checksums of the files that it has made in the run's folder, and log it."""
        receipt = {"stage": stage, "finished": now(), "seconds": round(seconds, 3), **facts}
        self.log("stage finished", **receipt)
        receipt["files"] = {str(file.relative_to(self.path)): crc32c(file.read_bytes()) for file in sorted(files)}
        self.write_json(f"stages/{stage}.json", receipt)
        return receipt

    def damaged_files(self, stage: str) -> list[str]:
        """A line for every file of a finished stage that is gone, or not what the stage has written."""
        found = []
        for name, checksum in ((self.receipt(stage) or {}).get("files") or {}).items():
            try:
                if crc32c((self.path / name).read_bytes()) != checksum:
                    found.append(f"{self.path / name} is not what the stage {stage} has written")
            except OSError as error:
                found.append(f"{self.path / name} cannot be read ({error.strerror or error})")
        return found

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
        with contextlib.ExitStack() as stack:
            for patience in (*_PATIENCE, None):
                try:
                    stack.enter_context(self.store.lease("run", holder={"what": f"run {self.path}"}))
                    break
                except HeldError:
                    if patience is None:
                        raise
                    time.sleep(patience)
            yield


def _gone(path: Path) -> str:
    return f"{path / _RUN_FILE} of a run is gone: move the folder away and run again, which reuses the stored tiles"


def _unsealed(stored: Any) -> dict[str, Any]:
    """A JSON object of a run; one without a seal is taken as it is.

    Raises:
        ValueError: if it is none, or not what was written.
    """
    body = unsealed(stored) if isinstance(stored, dict) and "sha256" in stored else stored
    if not isinstance(body, dict):
        raise ValueError("it disagrees with its own hash" if isinstance(stored, dict) else "it is no JSON object")
    return body


def _strangers(path: Path, store: Path) -> list[str]:
    """What lies in a folder that may not precede a run: leases, the sweeps of Hydra and the store itself may."""
    ours = ("multirun.yaml", "launch", ".leases", "stages", "trackers")
    others = [p for p in path.iterdir() if p.name not in ours and not p.name.endswith(".partial")]
    return sorted(p.name for p in others if not store.resolve().is_relative_to(p.resolve()))


@dataclasses.dataclass
class Progress:
    """Tells the terminal, `progress.json` and whoever watches how a stage goes, at most once in `every` seconds."""

    run: RunDir
    stage: str
    echo: Any
    watch: Any = None
    every: float = 2.0
    _last: float = 0.0
    _line: str = ""
    _started: float = dataclasses.field(default_factory=time.monotonic)

    def __call__(self, line: str, *, final: bool = False, **facts: Any) -> None:
        """Report; `facts` are JSON-ready (done, total, rate, remaining seconds, ...)."""
        elapsed = time.monotonic() - self._started
        if not final and time.monotonic() - self._last < self.every:
            return
        self._last = time.monotonic()
        if self.watch is not None:
            facts |= self.watch.asked()
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
        if self.watch is not None:
            others = {name: value for name, value in facts.items() if name != "stage"}
            self.watch.progress(self.stage, line, elapsed=elapsed, **others)
        if line != self._line:
            self.echo(f"{self.stage:<8} {line}")
        self._line = line
