"""A run's folder: its configuration, the receipts of its stages, its progress and its log.

```
run.json            the checked configuration; marks the folder as a run
stages/<name>.json  receipt of a finished stage: its inputs, time and duration, and checksums of its files
progress.json       the current state; overwritten every few seconds
log.jsonl           one event per line, append-only
predictions.zarr  metrics.json  report/
```

All JSON files except `metrics.json` carry a hash of themselves (`sha256`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ntkpipe import __version__
from ntkpipe.config import RunConfig, from_dict, to_dict
from ntkpipe.data.stored_labels import GIVEN_PREFIX
from ntkpipe.errors import ConfigError, HeldError, IncompleteError, StoreError
from ntkpipe.run import places
from ntkpipe.storage.checksum import crc32c, sealed, unsealed
from ntkpipe.storage.clock import now
from ntkpipe.storage.foreign import is_foreign_name
from ntkpipe.storage.plain import json_ready, with_numbers
from ntkpipe.storage.replace import replace_text
from ntkpipe.storage.store import ObjectStore, local_folder, open_store

_log = logging.getLogger(__name__)

FORMAT = 1
STAGES = ("data", "gram", "solve", "predict", "report")
_RUN_FILE = "run.json"
_LOG_FILE = "log.jsonl"
# The cluster and the watchers do not change the results, so a run may be resumed with other workers.
FREE_SETTINGS = ("cluster", "run_dir", "watch", "report", "finite")
"""Settings that may change when a stored run is resumed."""
# Seconds between attempts to hold a run, which a concurrent `status` may block for a moment.
_PATIENCE = (0.1, 0.2)
# Rank of a store that holds the run's objects.
_HOLDS = 2


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
    """A run's folder and the configuration stored in it.

    Args:
        path: path of the folder.
        config: configuration of the run, with absolute paths.
        choices: candidates for the paths of a stored run; see `places`.
    """

    path: Path
    config: RunConfig
    choices: places.Choices = dataclasses.field(default_factory=dict, compare=False)

    @staticmethod
    def create(config: RunConfig) -> RunDir:
        """Return a new run, or the existing run with the same configuration, without writing anything.

        `begin` writes the configuration after all checks, so that a refused run leaves its folder free.

        Raises:
            ConfigError: if the folder holds something else, or a run with another configuration.
        """
        config = places.anchored(config)
        path = Path(config.run_dir)
        if (path / _RUN_FILE).exists():
            stored = RunDir.open(path).config
            if config.solver.kind == "auto":  # the setting was chosen when the run began
                config = dataclasses.replace(config, solver=dataclasses.replace(config.solver, kind=stored.solver.kind))
            return RunDir(path, config, RunDir(path, config)._require_same().choices)
        if path.exists() and not path.is_dir():
            raise ConfigError(f"run_dir={path} is a file: name a folder")
        if (path / _LOG_FILE).exists():
            raise ConfigError(_gone(path))
        if path.exists() and (strangers := _strangers(path, config.store.url)):
            raise ConfigError(
                f"run_dir={path} is not a run's folder and not empty (it holds {', '.join(strangers[:3])}): name a "
                "new folder"
            )
        return RunDir(path, config)

    def begin(self) -> None:
        """Write the configuration, unless it exists. Call this while the run is held and after its inputs are checked.

        The method also updates the paths of a run that has moved or is from an earlier version.

        Raises:
            ConfigError: if another run has begun here since `create`.
        """
        record: dict[str, Any] = {"format": FORMAT, "created": now(), "ntkpipe": __version__}
        config = self.config
        if self.begun:
            self._require_same()
            record = _stored(self.path)
            old = from_dict(RunConfig, record["config"])
            config = places.with_paths(old, dict(places.named(self.config)))
        record |= {"config": to_dict(config), "beside": places.beside(config, self.path)}
        if not self.begun or record != _stored(self.path):
            self.write_json(_RUN_FILE, record)

    def _require_same(self) -> RunDir:
        """Return the stored run, or raise a ConfigError if its configuration differs."""
        stored = RunDir.open(self.path)
        mine = dict(places.named(self.config))
        # Paths may be written differently or have moved, so compare with the paths of this configuration.
        same = {
            name: mine[name]
            for name, known in stored.choices.items()
            if name in mine and any(places.is_same_place(mine[name], path) for path in known)
        }
        if places.STORE not in same and stored._rank(mine[places.STORE]) == _HOLDS:
            same[places.STORE] = mine[places.STORE]
        old, new = (
            {k: v for k, v in to_dict(c).items() if k not in FREE_SETTINGS}
            for c in (places.with_paths(stored.config, same), self.config)
        )
        if differing := _differences(old, new):
            raise ConfigError(
                f"{self.path} holds a run with another configuration ({'; '.join(differing)}). Set another run_dir: "
                "the new run reuses the stored Gram tiles, which are in store.url."
            )
        return stored

    @staticmethod
    def open(path: str | os.PathLike[str], *, store: str | None = None) -> RunDir:
        """Open an existing run at its current path, without writing anything.

        The store may be missing; see `require_store`.

        Args:
            path: the run's folder.
            store: the URL of its store, if the user gave one.

        Raises:
            ConfigError: if the folder is not a run, has a newer format, or `store` does not hold its objects.
        """
        path = Path(path).expanduser()
        stored = _stored(path)
        raw = from_dict(RunConfig, stored["config"])
        found = RunDir(path, raw)
        config, choices = places.resolve_paths(raw, stored.get("beside"), path, found._rank)
        if store is not None:
            config = places.with_paths(config, {places.STORE: store})
            config = dataclasses.replace(places.anchored(config), run_dir=raw.run_dir)
            if found._rank(config.store.url) != _HOLDS:
                raise ConfigError(
                    f"store.url={store} does not hold the objects of {path} "
                    f"({', '.join(found._stored_keys()) or 'a store'}): name the store of this run"
                )
        return RunDir(path, config, choices)

    def require_store(self) -> None:
        """Check that the store exists if the run has stored anything.

        Otherwise a missing store would be created by mistake.

        Raises:
            StoreError: with the store's last location and a remedy.
        """
        if not self._stored_keys() or places.is_store(open_store(self.config.store.url)):
            return
        where = " or ".join(dict.fromkeys((self.config.store.url, *self.choices.get(places.STORE, ()))))
        raise StoreError(
            f"the store of {self.path} is missing: there is none at {where}. If it moved, set store.url=PATH. If its "
            "disk is not mounted, mount it. If it was deleted, start the run in a new run_dir, which computes "
            "everything again."
        )

    def _stored_keys(self) -> list[str]:
        """Return the keys of stored objects that the receipts name, which identify this run's store."""
        data, gram = self.receipt("data") or {}, self.receipt("gram") or {}
        keys = [data["source"]] if "source" in data else []
        if data.get("images", GIVEN_PREFIX) != GIVEN_PREFIX:  # labels without images have no manifest
            keys.append(f"{data['images']}/manifest.json")
        if not gram.get("given"):
            stores = gram.get("stores") or ([gram["store"]] if "store" in gram else [])
            keys += [f"gram/{where.rpartition('/')[2]}/manifest.json" for where in stores]
        return keys

    def _rank(self, url: str) -> int:
        """Return the rank of a store: 0 if there is none, `_HOLDS` if it holds the run's objects, and 1 otherwise."""
        if not places.rank_of_any(url):
            return 0
        store = open_store(url)
        return _HOLDS if all(store.exists(key) for key in self._stored_keys()) else 1

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of the run: all, or all except the report if no report is configured."""
        return STAGES if self.config.report else STAGES[:-1]

    @property
    def begun(self) -> bool:
        """Whether the run's inputs were checked and its configuration was written."""
        return (self.path / _RUN_FILE).exists()

    @property
    def store(self) -> ObjectStore:
        """The folder as an object store (leases, checkpoints)."""
        return open_store(str(self.path))

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON object atomically with a seal; non-finite numbers become words (`storage.plain`)."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_text(target, json.dumps(sealed(json_ready(value, nan="nan")), indent=1, allow_nan=False))

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return a JSON object, or None if it is absent or damaged; the step that it records is then repeated."""
        try:
            return _unsealed(json.loads((self.path / name).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            _log.warning("%s is damaged (%s): the step that it records is repeated", self.path / name, error)
            return None

    def log(self, event: str, **facts: Any) -> None:
        """Append one event to the run log."""
        with (self.path / _LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(json_ready({"time": now(), "event": event, **facts}), allow_nan=False) + "\n")

    def receipt(self, stage: str) -> dict[str, Any] | None:
        """Return the receipt of a finished stage, or None; its numbers may be infinite or NaN."""
        found = with_numbers(self.read_json(f"stages/{stage}.json"))
        return found if found is not None and found.get("stage") == stage else None

    def require(self, stage: str) -> dict[str, Any]:
        """Return the receipt of a finished stage.

        Raises:
            IncompleteError: if the stage is not finished, naming the command that finishes it.
        """
        found = self.receipt(stage)
        if found is None:
            command = {"data": "gram", "gram": "gram", "solve": "solve", "predict": "predict"}.get(stage, "run")
            raise IncompleteError(
                f"stage {stage} of {self.path} is not finished: run ntkpipe {command} run_dir={self.path}"
            )
        return found

    def finish(self, stage: str, seconds: float, files: Iterable[Path] = (), **facts: Any) -> dict[str, Any]:
        """Write the receipt of a stage with checksums of its files in the run's folder, and return it."""
        receipt = {"stage": stage, "finished": now(), "seconds": round(seconds, 3), **facts}
        receipt["files"] = {
            str(file.relative_to(self.path)): crc32c(file.read_bytes())
            for file in sorted(files)
            if not is_foreign_name(file.name)
        }
        self.write_json(f"stages/{stage}.json", receipt)
        return receipt

    def damaged_files(self, stage: str) -> list[str]:
        """Return a line for every file of a finished stage that is missing or has changed."""
        found = []
        for name, checksum in ((self.receipt(stage) or {}).get("files") or {}).items():
            try:
                if crc32c((self.path / name).read_bytes()) != checksum:
                    found.append(f"{self.path / name} differs from what the stage {stage} wrote")
            except OSError as error:
                found.append(f"{self.path / name} cannot be read ({error.strerror or error})")
        return found

    def forget(self, *stages: str) -> None:
        """Delete receipts, so that the stages run again."""
        for stage in stages:
            (self.path / "stages" / f"{stage}.json").unlink(missing_ok=True)

    def holder(self) -> str | None:
        """Return a description of the active process that holds the run, or None, without writing anything."""
        return self.store.holder("run")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Context manager that holds the run for this process.

        Raises:
            HeldError: if another process holds the run, naming that process.
            StoreError: if the folder is not writable.
        """
        with contextlib.ExitStack() as stack:
            for patience in (*_PATIENCE, None):
                try:
                    stack.enter_context(self.store.lease("run", holder={"what": f"run {self.path}"}))
                    break
                except StoreError as error:
                    raise StoreError(
                        f"{error}. Commands that work without writing there: status, verify with repair=false, and "
                        "export and report with path=FOLDER."
                    ) from error
                except HeldError:
                    if patience is None:
                        raise
                    time.sleep(patience)
            yield


def _stored(path: Path) -> dict[str, Any]:
    """Return the record in `run.json`."""
    file = path / _RUN_FILE
    if (path / _LOG_FILE).exists() and not file.exists():
        raise ConfigError(_gone(path))
    if not file.exists() and (inside := sorted(path.glob(f"*/{_RUN_FILE}"))):
        raise ConfigError(f"run_dir={path} holds several runs: choose one, such as run_dir={inside[-1].parent}")
    if not file.exists():
        # A run that was refused before it began leaves only its lease.
        begun = (path / ".leases").is_dir()
        yet = " yet: its inputs are being checked, or were refused" if begun else ""
        raise ConfigError(
            f"run_dir={path} is not a run (it has no {_RUN_FILE}{yet}): check the path, or start one with ntkpipe run"
        )
    try:
        stored = _unsealed(json.loads(file.read_text(encoding="utf-8")))
        stored["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} is damaged ({error}): move the folder away and run again, which reuses the stored tiles"
        ) from error
    if stored.get("format") != FORMAT:
        raise ConfigError(
            f"{file} has format {stored.get('format')}, this version reads {FORMAT}: use the ntkpipe that wrote it"
        )
    return stored


def _gone(path: Path) -> str:
    return f"{path / _RUN_FILE} is missing: move the folder away and run again, which reuses the stored tiles"


def _unsealed(stored: Any) -> dict[str, Any]:
    """Return a JSON object of a run without its seal; an object without a seal is accepted.

    Raises:
        ValueError: if it is not a JSON object, or has changed.
    """
    body = unsealed(stored) if isinstance(stored, dict) and "sha256" in stored else stored
    if not isinstance(body, dict):
        raise ValueError("it disagrees with its own hash" if isinstance(stored, dict) else "it is no JSON object")
    return body


def _strangers(path: Path, url: str) -> list[str]:
    """Return the contents of a folder that prevent a run from starting there.

    Leases, sweeps, the store itself and files of file managers do not.
    """
    ours = ("multirun.yaml", "launch", ".leases", "stages", "trackers")
    names = (p for p in path.iterdir() if p.name not in ours and not p.name.endswith(".partial"))
    others = [p for p in names if not is_foreign_name(p.name)]
    store = local_folder(url)
    return sorted(p.name for p in others if store is None or not Path(store).resolve().is_relative_to(p.resolve()))
