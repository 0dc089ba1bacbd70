"""One network at several depths: a run for each, whose Gram tiles come out of one evaluation, and what they found."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ntkpipe.config import RunConfig
from ntkpipe.pipeline.run_dir import RunDir

_FIELDS: tuple[str, ...] = ("depth", "kernel", "ridge", "time", "accuracy", "mse", "max_error_bound", "bound_kind")


def depth_runs(config: RunConfig) -> tuple[RunConfig, ...]:
    """The runs that a configuration stands for: itself, or with `kernel.readout_depths` an ordinary one for each depth.

    Those are what `kernel.depth=...` alone would give: they share Gram stores with any other run of that depth, and each
    can be taken up by itself in its folder `run_dir/depth=...`.
    """
    if not config.kernel.readout_depths:
        return (config,)
    return tuple(
        dataclasses.replace(
            config,
            kernel=dataclasses.replace(config.kernel, depth=depth, readout_depths=()),
            run_dir=str(Path(config.run_dir) / f"depth={depth}"),
        )
        for depth in config.kernel.readout_depths
    )


def summarise(config: RunConfig) -> list[str]:
    """Write `depths.csv` into `run_dir`: a line per depth, kernel, ridge and time.

    Args:
        config: with `kernel.readout_depths`; runs that have no metrics yet are left out.

    Returns:
        A table for people: the last time, and the best one, of every depth.
    """
    records = list(_records(depth_runs(config)))
    text = io.StringIO()
    writer = csv.DictWriter(text, _FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    target = Path(config.run_dir) / "depths.csv"
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    partial.write_text(text.getvalue())
    os.replace(partial, target)
    return _table(records)


def _records(runs: Sequence[RunConfig]) -> Iterator[dict[str, Any]]:
    for run in runs:
        metrics = RunDir(Path(run.run_dir), run).read_json("metrics.json") or {"entries": []}
        for entry in metrics["entries"]:
            yield {"depth": run.kernel.depth} | {name: entry.get(name) for name in _FIELDS[1:]}


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
