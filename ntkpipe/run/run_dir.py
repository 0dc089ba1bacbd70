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
# Where tasks run and who watches does not change what they give: a run may be resumed with other workers.
FREE_SETTINGS = ("cluster", "run_dir", "watch", "report", "finite")
"""Settings that a stored run may be taken up with whatever they are."""
# Seconds between attempts to hold a run: a `status` that asks who holds it is in the way for a moment.
_PATIENCE = (0.1, 0.2)
# Rank of a store that holds what a run has stored.
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
        path: of the folder.
        config: of the run; its paths are absolute.
        choices: where else the paths of a stored run may be, see `places`.
    """

    path: Path
    config: RunConfig
    choices: places.Choices = dataclasses.field(default_factory=dict, compare=False)

    @staticmethod
    def create(config: RunConfig) -> RunDir:
        """A run that starts, or continues the one that is there with the same configuration. Writes nothing.

        `begin` writes the configuration, after all checks: a run that is refused leaves its folder free.

        Raises:
            ConfigError: if the folder holds something else, or a run with another configuration.
        """
        config = places.anchored(config)
        path = Path(config.run_dir)
        if (path / _RUN_FILE).exists():
            stored = RunDir.open(path).config
            if config.solver.kind == "auto":  # it was chosen when the run began
                config = dataclasses.replace(config, solver=dataclasses.replace(config.solver, kind=stored.solver.kind))
            return RunDir(path, config, RunDir(path, config)._require_same().choices)
        if path.exists() and not path.is_dir():
            raise ConfigError(f"run_dir={path} is a file: name a folder")
        if (path / _LOG_FILE).exists():
            raise ConfigError(_gone(path))
        if path.exists() and (strangers := _strangers(path, config.store.url)):
            raise ConfigError(
                f"run_dir={path} is not empty and not a run (it holds {', '.join(strangers[:3])}): name a new folder"
            )
        return RunDir(path, config)

    def begin(self) -> None:
        """Write the configuration, unless it is there; call it while the run is held and its inputs are checked.

        The paths of a run that has moved, or of an earlier version, are brought up to date.

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
        """The stored run, if its configuration is this one."""
        stored = RunDir.open(self.path)
        mine = dict(places.named(self.config))
        # Named in another way, or moved: the paths of the stored run are those of this one.
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
                f"{self.path} holds a run with another configuration ({'; '.join(differing)}). Give this one a run_dir "
                "of its own: it reuses the stored Gram tiles, since those live in store.url."
            )
        return stored

    @staticmethod
    def open(path: str | os.PathLike[str], *, store: str | None = None) -> RunDir:
        """An existing run, wherever it is now. Nothing is written, and its store need not be there: see `require_store`.

        Args:
            path: of its folder.
            store: where its store is, if that was said.

        Raises:
            ConfigError: if the folder is not a run, or of a newer format, or `store` does not hold what it has stored.
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
                    f"store.url={store} does not hold what {path} has stored ({', '.join(found._stored_keys()) or 'a store'}): "
                    "name the store of this run"
                )
        return RunDir(path, config, choices)

    def require_store(self) -> None:
        """Check that the store is there, if the run has stored anything: an absent one is not to be made anew by mistake.

        Raises:
            StoreError: saying where it was, and what to do.
        """
        if not self._stored_keys() or places.is_store(open_store(self.config.store.url)):
            return
        where = " or ".join(dict.fromkeys((self.config.store.url, *self.choices.get(places.STORE, ()))))
        raise StoreError(
            f"the store of {self.path} is not there: there is none at {where}. If it moved, say where it is: "
            "store.url=PATH. If its disk is not mounted, mount it. If it is gone, start the run again in a new run_dir, which "
            "computes everything anew."
        )

    def _stored_keys(self) -> list[str]:
        """Keys of objects in the store that the receipts name: whatever has them is this run's store."""
        data, gram = self.receipt("data") or {}, self.receipt("gram") or {}
        keys = [data["source"]] if "source" in data else []
        if data.get("images", GIVEN_PREFIX) != GIVEN_PREFIX:  # labels alone have no manifest
            keys.append(f"{data['images']}/manifest.json")
        if not gram.get("given"):
            stores = gram.get("stores") or ([gram["store"]] if "store" in gram else [])
            keys += [f"gram/{where.rpartition('/')[2]}/manifest.json" for where in stores]
        return keys

    def _rank(self, url: str) -> int:
        """How much speaks for a store: 0 if there is none, `_HOLDS` if it holds what the receipts name."""
        if not places.rank_of_any(url):
            return 0
        store = open_store(url)
        return _HOLDS if all(store.exists(key) for key in self._stored_keys()) else 1

    @property
    def stages(self) -> tuple[str, ...]:
        """That the run is finished with: all, or all but the report where none is wanted."""
        return STAGES if self.config.report else STAGES[:-1]

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
        replace_text(target, json.dumps(sealed(json_ready(value, nan="nan")), indent=1, allow_nan=False))

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
        """Write the receipt of a stage, with the checksums of the files that it has made in the run's folder."""
        receipt = {"stage": stage, "finished": now(), "seconds": round(seconds, 3), **facts}
        receipt["files"] = {
            str(file.relative_to(self.path)): crc32c(file.read_bytes())
            for file in sorted(files)
            if not is_foreign_name(file.name)
        }
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

    def holder(self) -> str | None:
        """Which living process holds the run, in words; None if none does. Nothing is written."""
        return self.store.holder("run")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the run for this process.

        Raises:
            HeldError: saying which living process holds it.
            StoreError: if the folder cannot be written to.
        """
        with contextlib.ExitStack() as stack:
            for patience in (*_PATIENCE, None):
                try:
                    stack.enter_context(self.store.lease("run", holder={"what": f"run {self.path}"}))
                    break
                except StoreError as error:
                    raise StoreError(
                        f"{error}. Without writing there, a stored run can be asked for its status, verified with repair=false, "
                        "and exported and reported with path=... to another folder."
                    ) from error
                except HeldError:
                    if patience is None:
                        raise
                    time.sleep(patience)
            yield


def _stored(path: Path) -> dict[str, Any]:
    """The record in `run.json`."""
    file = path / _RUN_FILE
    if (path / _LOG_FILE).exists() and not file.exists():
        raise ConfigError(_gone(path))
    if not file.exists():
        # Of a run that has been here and not begun, only its lease is left.
        begun = (path / ".leases").is_dir()
        yet = " yet: the inputs of one are being checked, or were refused" if begun else ""
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


def _strangers(path: Path, url: str) -> list[str]:
    """What lies in a folder that may not precede a run: leases, sweeps, the store itself and what file managers leave may."""
    ours = ("multirun.yaml", "launch", ".leases", "stages", "trackers")
    names = (p for p in path.iterdir() if p.name not in ours and not p.name.endswith(".partial"))
    others = [p for p in names if not is_foreign_name(p.name)]
    store = local_folder(url)
    return sorted(p.name for p in others if store is None or not Path(store).resolve().is_relative_to(p.resolve()))
