"""Several runs side by side: one table, best first, of what differs between them and what they have found, and a figure."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ntkpipe.config import to_dict
from ntkpipe.config.values import shown
from ntkpipe.errors import ConfigError, NtkpipeError
from ntkpipe.predictions.metrics import read_metrics
from ntkpipe.report.drawing import drawing
from ntkpipe.run.run_dir import FREE_SETTINGS, RunDir
from ntkpipe.run.sweep import Sweep
from ntkpipe.storage.replace import replace_text

_COLUMNS = ("kernel", "value", "time", "ridge", "last", "max_error_bound")
# Settings that say where things lie, and none that changes numbers.
_PLACES = ("store.url",)


@dataclass(frozen=True)
class Comparison:
    """What several runs have found. Made by `compare`.

    Args:
        measure: `accuracy`, or `rmse` in regression: of the test points.
        settings: names of the settings in which the runs differ.
        rows: of every run and kernel, best first: `run`, the settings, `kernel`, `value` (the best over times and ridges, at `time` and
            `ridge`), `last` (after all of training, at that ridge) and `max_error_bound`.
        curves: of every row, the measure at each time, at the row's ridge.
        failures: runs that have no results, and why.
    """

    measure: str
    settings: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    curves: tuple[tuple[tuple[float, float], ...], ...]
    failures: tuple[tuple[str, str], ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the table."""
        return ("run", *self.settings, *_COLUMNS)

    def cells(self) -> list[list[str]]:
        """The table as texts, with a line of headings; `value` is headed by the measure."""
        heads = [self.measure if name == "value" else name for name in self.columns]
        return [heads, *([_cell(row.get(name)) for name in self.columns] for row in self.rows)]

    def to_pandas(self) -> Any:
        """The table as a `pandas.DataFrame`."""
        import pandas as pd

        return pd.DataFrame(list(self.rows), columns=list(self.columns)).rename(columns={"value": self.measure})

    def to_csv(self) -> str:
        """The table with all digits."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.cells()[0])
        writer.writerows([row.get(name) for name in self.columns] for row in self.rows)
        return text.getvalue()

    def to_latex(self) -> str:
        """A `tabular` with rules of the package booktabs."""
        head, *body = ([_latex(cell) for cell in line] for line in self.cells())
        lines = [" & ".join(line) + r" \\" for line in (head, *body)]
        columns = "l" * (1 + len(self.settings) + 1) + "r" * (len(_COLUMNS) - 1)
        rows = "\n".join([r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"])
        return f"\\begin{{tabular}}{{{columns}}}\n{rows}\n\\end{{tabular}}\n"

    def to_html(self) -> str:
        """A `table`; notebooks show it."""
        head, *body = self.cells()
        lines = [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in body]
        heads = "".join(f"<th>{escape(cell)}</th>" for cell in head)
        return f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody>\n</table>\n"

    def _repr_html_(self) -> str:
        return self.to_html()

    def plot(self) -> Any:
        """One curve a run over training time: a `matplotlib.figure.Figure`."""
        from ntkpipe.report.comparison_figure import draw_comparison

        return draw_comparison(self.measure, self.labels(), self.curves)

    def labels(self) -> list[str]:
        """What each row is called in a figure: its settings and kernel, or its run."""
        kernels = len({row["kernel"] for row in self.rows}) > 1
        found = []
        for row in self.rows:
            parts = [f"{name.rpartition('.')[2]} {_cell(row[name])}" for name in self.settings] or [row["run"]]
            found.append(", ".join([*parts, *([row["kernel"]] if kernels else [])]))
        return found

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write `compare.csv`, `.tex`, `.html`, `.png` and `.svg` into a folder; returns their paths.

        Raises:
            ReportError: if the figure could not be drawn; the tables are written then.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        made = []
        for ending, text in (("csv", self.to_csv()), ("tex", self.to_latex()), ("html", self.to_html())):
            made.append(target / f"compare.{ending}")
            replace_text(made[-1], text)
        with drawing("ntkpipe compare with the same runs"):
            from ntkpipe.report.style import render

            made += render(self.plot, target, "compare")
        return made

    def __str__(self) -> str:
        cells = self.cells()
        widths = [max(len(line[k]) for line in cells) for k in range(len(cells[0]))]
        text = 2 + len(self.settings)
        lines = [
            "  ".join(c.ljust(w) if k < text else c.rjust(w) for k, (c, w) in enumerate(zip(line, widths, strict=True)))
            for line in cells
        ]
        return "\n".join([line.rstrip() for line in lines] + [f"{run}: {why}" for run, why in self.failures])


def compare(*runs: str | os.PathLike[str] | Any) -> Comparison:
    """Put runs side by side, best first.

    Args:
        runs: folders of runs or of sweeps, or runs that `open_run` gave; or one list of them.

    Raises:
        ConfigError: if no run has results, or classification stands beside regression.
    """
    given: Iterable[Any] = runs[0] if len(runs) == 1 and isinstance(runs[0], (list, tuple)) else runs
    found: list[tuple[RunDir, dict[str, Any]]] = []
    failures: list[tuple[str, str]] = []
    for path in _folders(given):
        try:
            run = RunDir.open(path)
            run.require("predict")
            found.append((run, read_metrics(run.path / "metrics.json")))
        except (NtkpipeError, OSError, ValueError, KeyError) as error:
            failures.append((str(path), str(error)))
    if not found:
        raise ConfigError("; ".join(["no run to compare has results", *(why for _, why in failures)]))
    if len({metrics["task"] for _, metrics in found}) > 1:
        raise ConfigError("classification cannot be compared with regression: name runs of one kind")
    measure = "accuracy" if found[0][1]["task"] == "classification" else "rmse"
    settings = _differing([run for run, _ in found])
    names = _names([run.path for run, _ in found])
    made = []
    for (run, metrics), name in zip(found, names, strict=True):
        values = _flat(run)
        base = {"run": name, **{setting: values.get(setting) for setting in settings}}
        made += [(base | row, curve) for row, curve in _rows(metrics["entries"], measure)]
    made.sort(key=lambda pair: -pair[0]["value"] if measure == "accuracy" else pair[0]["value"])
    return Comparison(
        measure, settings, tuple(row for row, _ in made), tuple(curve for _, curve in made), tuple(failures)
    )


def _folders(given: Iterable[Any]) -> Iterable[Path]:
    for one in given:
        path = Path(getattr(one, "path", one)).expanduser()
        if (sweep := Sweep.find(path)) is not None:
            yield from sweep.runs
        elif path.is_dir() or not path.exists():  # of `runs/*`, files are passed over
            yield path


def _rows(entries: Sequence[dict[str, Any]], measure: str) -> Iterable[tuple[dict[str, Any], Any]]:
    """The best entry of every kernel, and the measure over time at its ridge."""
    sign = 1 if measure == "accuracy" else -1
    for kernel in dict.fromkeys(entry["kernel"] for entry in entries):
        own = [
            (entry, value)
            for entry in entries
            if entry["kernel"] == kernel and (value := _value(entry, measure)) is not None
        ]
        if not own:
            continue
        best, value = max(own, key=lambda pair: sign * pair[1])
        curve = tuple(sorted((float(e["time"]), v) for e, v in own if e["ridge"] == best["ridge"]))
        row = {name: best[name] for name in ("kernel", "time", "ridge", "max_error_bound")}
        yield row | {"value": value, "last": curve[-1][1]}, curve


def _value(entry: dict[str, Any], measure: str) -> float | None:
    value = entry.get(measure)
    if value is None and measure == "rmse" and entry.get("mse") is not None:
        return math.sqrt(entry["mse"])
    return value


def _flat(run: RunDir) -> dict[str, Any]:
    flat = {}
    for group, value in to_dict(run.config).items():
        if group in FREE_SETTINGS:
            continue
        inner = value.items() if isinstance(value, dict) else ()
        flat |= {f"{group}.{name}": one for name, one in inner} if inner else {group: value}
    return {name: value for name, value in flat.items() if name not in _PLACES}


def _differing(runs: Sequence[RunDir]) -> tuple[str, ...]:
    """Settings that are not the same in all runs."""
    all_values = [_flat(run) for run in runs]
    names = dict.fromkeys(name for values in all_values for name in values)
    return tuple(name for name in names if any(v.get(name) != all_values[0].get(name) for v in all_values[1:]))


def _names(paths: Sequence[Path]) -> list[str]:
    """The folders' names, or their paths where names are the same."""
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else shown(value)


def _latex(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "_%&#${}" else letter for letter in text)
