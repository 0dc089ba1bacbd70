"""Comparison of several runs: a table of their differing settings and results, best first, and a figure."""

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
from ntkpipe.extras import require
from ntkpipe.predictions.doubt import MARK, legend
from ntkpipe.predictions.metrics import read_metrics
from ntkpipe.report.comparison_page import write_comparison_page
from ntkpipe.report.drawing import can_draw, drawing
from ntkpipe.run.run_dir import FREE_SETTINGS, RunDir
from ntkpipe.run.sweep import Sweep
from ntkpipe.storage.replace import replace_text

_COLUMNS = ("kernel", "value", "time", "ridge", "last", "max_error_bound")
_LONGEST_LABEL = 36
# Settings of locations, which do not change numbers.
_PLACES = ("store.url",)


@dataclass(frozen=True)
class Comparison:
    """Results of several runs; `compare` makes it.

    Args:
        measure: `accuracy`, or `rmse` for regression, on the test points.
        settings: names of the settings in which the runs differ.
        rows: one row for every run and kernel, best first. It has `run`, the settings, `kernel`, `value` (the best over
            times and ridges, at `time` and `ridge`), `last` (at the last time, at that ridge) and `max_error_bound`.
            `doubts` has the reasons why `value` or `last` may be entirely wrong.
        curves: for every row, the pairs of time and measure at the row's ridge.
        failures: runs without results, and the reasons.
    """

    measure: str
    settings: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    curves: tuple[tuple[tuple[float, float], ...], ...]
    failures: tuple[tuple[str, str], ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the table's columns."""
        return ("run", *self.settings, *_COLUMNS)

    def cells(self) -> list[list[str]]:
        """Return the table as text cells with a line of headings; the heading of `value` is the measure."""
        heads = [self.measure if name == "value" else name for name in self.columns]
        return [
            heads,
            *(
                [_cell(row.get(name)) + (MARK if row["doubts"].get(name) else "") for name in self.columns]
                for row in self.rows
            ),
        ]

    def to_pandas(self) -> Any:
        """Return the table as a `pandas.DataFrame`."""
        require("pandas", "to_pandas")
        import pandas as pd

        return pd.DataFrame(list(self.rows), columns=list(self.columns)).rename(columns={"value": self.measure})

    def to_csv(self) -> str:
        """Return the table as CSV with all digits."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.cells()[0])
        writer.writerows([row.get(name) for name in self.columns] for row in self.rows)
        return text.getvalue()

    def to_latex(self) -> str:
        """Return the table as a LaTeX `tabular` with rules of the package booktabs."""
        head, *body = ([_latex(cell) for cell in line] for line in self.cells())
        lines = [" & ".join(line) + r" \\" for line in (head, *body)]
        columns = "l" * (1 + len(self.settings) + 1) + "r" * (len(_COLUMNS) - 1)
        rows = "\n".join([r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"])
        return f"\\begin{{tabular}}{{{columns}}}\n{rows}\n\\end{{tabular}}\n"

    def to_html(self) -> str:
        """Return the table as an HTML `table`, which notebooks show."""
        head, *body = self.cells()
        lines = [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in body]
        heads = "".join(f"<th>{escape(cell)}</th>" for cell in head)
        return f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody>\n</table>\n"

    def _repr_html_(self) -> str:
        return self.to_html()

    def plot(self) -> Any:
        """Return a `matplotlib.figure.Figure` with one curve per run over training time."""
        require("matplotlib", "plot")
        from ntkpipe.report.comparison_figure import draw_comparison

        return draw_comparison(self.measure, self.labels(), self.curves)

    def labels(self) -> list[str]:
        """Return a label of each row for figures: its settings and kernel, or its run if the settings are too long."""
        kernels = len({row["kernel"] for row in self.rows}) > 1
        found = []
        for row in self.rows:
            parts = [f"{name.rpartition('.')[2]} {_cell(row[name])}" for name in self.settings]
            if not parts or len(", ".join(parts)) > _LONGEST_LABEL:
                parts = [row["run"]]
            found.append(", ".join([*parts, *([row["kernel"]] if kernels else [])]))
        return found

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write `compare.csv`, `.tex`, `.html`, `.png` and `.svg` into a folder, and return their paths.

        Without matplotlib, the method writes no `.png` and no `.svg`.

        Raises:
            ReportError: if the figure could not be drawn; the tables are written before.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        made = []
        for ending, text in (("csv", self.to_csv()), ("tex", self.to_latex())):
            made.append(target / f"compare.{ending}")
            replace_text(made[-1], text)
        texts, notes = 2 + len(self.settings), [*self.notes(), *(f"{run}: {why}" for run, why in self.failures)]
        made.append(write_comparison_page(self.cells(), texts, notes, target, None))
        if not can_draw():
            return made
        with drawing("ntkpipe compare with the same runs"):
            from ntkpipe.report.style import render, render_for_phones

            png, svg = render(self.plot, target, "compare")
            made += [png, svg]
            drawn = (png, svg, lambda: render_for_phones(self.plot))
            write_comparison_page(self.cells(), texts, notes, target, drawn)
        return made

    def notes(self) -> list[str]:
        """Return lines that explain the marks in the table."""
        return [f"{MARK} {text}" for text in legend(doubt for row in self.rows for doubt in row["doubts"].values())]

    def __str__(self) -> str:
        cells = self.cells()
        widths = [max(len(line[k]) for line in cells) for k in range(len(cells[0]))]
        text = 2 + len(self.settings)
        lines = [
            "  ".join(c.ljust(w) if k < text else c.rjust(w) for k, (c, w) in enumerate(zip(line, widths, strict=True)))
            for line in cells
        ]
        return "\n".join(
            [line.rstrip() for line in lines] + self.notes() + [f"{run}: {why}" for run, why in self.failures]
        )


def compare(*runs: str | os.PathLike[str] | Any) -> Comparison:
    """Compare the results of runs, best first.

    Args:
        runs: folders of runs or sweeps, or runs from `open_run`; or one list of these.

    Raises:
        ConfigError: if no run has results, or runs of classification and regression are mixed.
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
    kinds = {
        kind: [str(run.path) for run, one in found if one["task"] == kind] for kind in {m["task"] for _, m in found}
    }
    if len(kinds) > 1:
        told = "; ".join(f"{kind}: {', '.join(paths)}" for kind, paths in sorted(kinds.items()))
        raise ConfigError(f"classification cannot be compared with regression. Name runs of one kind only ({told})")
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
        elif path.is_dir() or not path.exists():  # files that match `runs/*` are skipped
            yield path


def _rows(entries: Sequence[dict[str, Any]], measure: str) -> Iterable[tuple[dict[str, Any], Any]]:
    """Yield the best entry of every kernel, and the measure over time at its ridge."""
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
        along = sorted(
            ((float(e["time"]), v, e.get("doubt")) for e, v in own if e["ridge"] == best["ridge"]),
            key=lambda one: one[0],
        )
        row = {name: best[name] for name in ("kernel", "time", "ridge", "max_error_bound")}
        doubts = {"value": best.get("doubt"), "last": along[-1][2]}
        row |= {"value": value, "last": along[-1][1], "doubts": {name: why for name, why in doubts.items() if why}}
        yield row, tuple((time, value) for time, value, _ in along)


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
    """Return the names of the settings that differ between runs."""
    all_values = [_flat(run) for run in runs]
    names = dict.fromkeys(name for values in all_values for name in values)
    return tuple(name for name in names if any(v.get(name) != all_values[0].get(name) for v in all_values[1:]))


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the names of folders, or their paths if two names are equal."""
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else shown(value)


def _latex(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "_%&#${}" else letter for letter in text)
