"""Sweeps over depths or training sizes: runs that share Gram tiles, in folders below one folder, and their results.

```
run_dir/sweep.json         the varied setting, its values, the configuration; marks the folder as a sweep
        depth=3/           a run; or train_size=1000/
        depths.csv         one line per depth, kernel, ridge and time
        learning_curve.*   for training sizes: csv, json, and a page with its figures
```
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ntkpipe.config import RunConfig, from_dict, to_dict
from ntkpipe.errors import ConfigError
from ntkpipe.run import places
from ntkpipe.run.run_dir import RunDir
from ntkpipe.storage.replace import replace_text

Axis = Literal["depth", "train_size"]

_FILE = "sweep.json"
_FIELDS: tuple[str, ...] = ("kernel", "ridge", "time", "accuracy", "mse", "max_error_bound", "bound_kind")


def sweep_axis(config: RunConfig) -> Axis | None:
    """Return the setting that takes several values, or None for a single run."""
    if config.kernel.readout_depths:
        return "depth"
    return "train_size" if config.predict.train_sizes else None


def sweep_runs(config: RunConfig) -> tuple[RunConfig, ...]:
    """Return the runs of a configuration: the configuration itself, or one run for each depth or training size.

    Each run equals a single run with `kernel.depth=...` or `data.train_size=...`. It shares Gram stores with other runs
    of that network, and can be resumed separately in its folder `run_dir/depth=...`.
    """
    axis, parent = sweep_axis(config), Path(config.run_dir)
    if axis is None:
        return (config,)
    if axis == "depth":
        return tuple(
            dataclasses.replace(
                config,
                kernel=dataclasses.replace(config.kernel, depth=depth, readout_depths=()),
                run_dir=str(parent / f"depth={depth}"),
            )
            for depth in config.kernel.readout_depths
        )
    return tuple(
        dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, train_size=size),
            predict=dataclasses.replace(config.predict, train_sizes=(), theory=False),
            run_dir=str(parent / f"train_size={size}"),
        )
        for size in sorted(config.predict.train_sizes)
    )


@dataclass(frozen=True)
class Sweep:
    """A folder of runs.

    Args:
        path: path of the folder.
        axis: the setting that varies; None for a folder whose runs differ in other settings.
        runs: folders of the runs, including runs that have not begun.
        config: configuration of the sweep; None if it is not known.
        store: the current URL of the store of all runs, if it has moved.
    """

    path: Path
    axis: Axis | None
    runs: tuple[Path, ...]
    config: RunConfig | None = None
    store: str | None = None

    @staticmethod
    def begin(config: RunConfig) -> Sweep:
        """Write the record of the sweep, and return the sweep."""
        axis, path = sweep_axis(config), Path(config.run_dir)
        assert axis is not None
        runs = tuple(Path(one.run_dir) for one in sweep_runs(config))
        record = {"axis": axis, "runs": [run.name for run in runs]}
        path.mkdir(parents=True, exist_ok=True)
        config = places.anchored(config)
        record |= {"config": to_dict(config), "beside": places.beside(config, path)}
        replace_text(path / _FILE, json.dumps(record, indent=1))
        return Sweep(path, axis, runs, config)

    @staticmethod
    def find(path: str | os.PathLike[str], *, store: str | None = None) -> Sweep | None:
        """Return the sweep in a folder, or None if the folder is a run or not a sweep.

        Args:
            path: the folder.
            store: the current URL of the runs' store, if it has moved.

        Raises:
            ConfigError: if the record of a sweep is damaged.
        """
        folder = Path(path).expanduser()
        if (folder / "run.json").exists() or not folder.is_dir():
            return None
        below = tuple(sorted((p.parent for p in folder.glob("*/run.json")), key=_natural))
        if not (folder / _FILE).exists():
            return Sweep(folder, None, below, store=store) if below else None
        try:
            record = json.loads((folder / _FILE).read_text(encoding="utf-8"))
            config, _ = places.resolve_paths(
                from_dict(RunConfig, record["config"]), record.get("beside"), folder, places.rank_of_any
            )
            names = [str(name) for name in record["runs"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{folder / _FILE} is damaged ({error}): repeat the sweep's command, which continues it"
            ) from error
        # An earlier start may have had other values, and its runs belong to the sweep as well.
        runs = {folder / name for name in names if "/" not in name} | set(below)
        return Sweep(folder, sweep_axis(config), tuple(sorted(runs, key=_natural)), config, store)

    def open(self, run: Path) -> RunDir | None:
        """Return one of the runs, or None if it has not begun.

        Raises:
            ConfigError: if `store` does not hold the objects of the run.
        """
        return RunDir.open(run, store=self.store) if (run / "run.json").exists() else None

    def begun(self) -> tuple[RunDir, ...]:
        """Return the runs that have begun; raises the errors of `open`."""
        return tuple(found for run in self.runs if (found := self.open(run)) is not None)


def write_table(sweep: Sweep, folder: Path | None = None) -> list[str]:
    """Write `depths.csv` with one line per depth, kernel, ridge and time; runs without metrics are left out.

    Args:
        sweep: the sweep over depths.
        folder: target folder; None is the sweep's own.

    Returns:
        Lines of a table with the last and the best time of every depth, and the file's path.
    """
    records = [
        {"depth": run.config.kernel.depth} | {name: entry.get(name) for name in _FIELDS}
        for run in sweep.begun()
        for entry in (run.read_json("metrics.json") or {"entries": []})["entries"]
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, ("depth", *_FIELDS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    target = (folder or sweep.path) / "depths.csv"
    replace_text(target, text.getvalue())
    return [*_table(records), f"depths       {target}"]


def _natural(path: Path) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _table(records: Sequence[dict[str, Any]]) -> list[str]:
    accurate = any(record["accuracy"] is not None for record in records)
    name, best = ("accuracy", max) if accurate else ("mse", min)
    lines = [f"{name:<10}{'kernel':<8}{'ridge':<10}{'last':>10}{'best':>10}"]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in records:
        if record[name] is not None:
            groups.setdefault((record["depth"], record["kernel"], record["ridge"]), []).append(record)
    for (depth, kernel, ridge), found in groups.items():
        chosen = best(found, key=lambda record: record[name])
        lines.append(
            f"depth {depth:<4}{kernel:<8}{ridge:<10g}{found[-1][name]:>10.4f}{chosen[name]:>10.4f} at t={float(chosen['time']):g}"
        )
    return lines
