"""One self-contained HTML page about a run: no script, nothing loaded from elsewhere, every text escaped."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ntkpipe.dynamics.estimates import STATED
from ntkpipe.predictions.choice import basis_of, chosen_entries
from ntkpipe.predictions.doubt import MARK, legend
from ntkpipe.predictions.schema import BOUND_KINDS
from ntkpipe.report.figures import FigureFile, write_figures
from ntkpipe.report.html import document, write_page
from ntkpipe.report.html import figures as _figures
from ntkpipe.report.html import section as _section
from ntkpipe.report.html import table as _table
from ntkpipe.report.inputs import ReportInputs
from ntkpipe.report.outcomes import confusion_matrix
from ntkpipe.report.style import entry_name, kernel_name, number

OWN_PLACE = ("title", "warnings", "signals", "max_learning_rate", "timings")
SECTIONS = ("data", "kernel", "hardware", "versions", "config")
CONFUSED_PAIRS = 8


def write_report(inputs: ReportInputs, folder: str | os.PathLike[str]) -> Path:
    """Write `report.html` and the figures it shows (`figures/*.png`, `figures/*.svg`) into a folder.

    Args:
        inputs: of the report.
        folder: created if absent.

    Returns:
        Path of the page.
    """
    folder = Path(folder)
    figures = write_figures(inputs, folder / "figures")
    return write_page(folder / "report.html", render_page(inputs, figures))


def render_page(inputs: ReportInputs, figures: Sequence[FigureFile]) -> str:
    """The page as HTML text; figures are inlined as images, so that nothing in them can run or clash."""
    summary = inputs.summary
    title = str(summary.get("title") or "Predictions of infinitely wide networks")
    body = [
        f"<header><h1>{escape(title)}</h1>{_lead(inputs)}</header>",
        _tiles(inputs),
        _warnings(inputs),
        _section("Figures", _figures(figures)),
        _section("Accuracy and loss", _metric_tables(inputs)),
        _section("Numerical error", _bound_table(inputs)),
        _section("Cross-validation", _folds(inputs)),
        _section("Most frequent confusions", _confused_pairs(inputs)),
        _section("Learning rate", _learning_rates(inputs)),
        _section("Signals through the layers", _signals(inputs)),
        _section("Time per stage", _timings(summary.get("timings"))),
        _section("The run", _facts(summary)),
        f"<footer>Predictions {escape(inputs.predictions.fingerprint())}</footer>",
    ]
    return document(title, [part for part in body if part])


def _lead(inputs: ReportInputs) -> str:
    K, T, R, p, c = inputs.predictions.shape
    outputs = "class" if inputs.predictions.predicts_classes else "output"
    parts = [_count(K, "kernel"), _count(T, "training time"), _count(R, "ridge"), _count(p, "test point")]
    return f'<p class="lead">{", ".join([*parts, _count(c, outputs)])}.</p>'


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def _tiles(inputs: ReportInputs) -> str:
    """The headline entry in a few large numbers."""
    predictions, entry = inputs.predictions, inputs.headline()
    metric = inputs.metric(entry)
    k, t, r = entry
    mark, facts = MARK if metric.get("doubt") else "", []
    if metric.get("accuracy") is not None:
        facts.append((f"{metric['accuracy']:.2%}{mark}", f"accuracy ± {metric['accuracy_standard_error']:.2%}"))
    if metric["mse"] is not None:
        facts.append((_significant(metric["mse"]) + mark, "mean squared error"))
    if metric.get("rmse") is not None:
        facts.append((_significant(metric["rmse"]) + mark, "root mean squared error"))
    if metric.get("r2") is not None:
        facts.append((_significant(metric["r2"]) + mark, "R²"))
    if (mean := inputs.metrics.get("of_the_mean")) is not None:
        facts.append((_significant(mean["rmse"]), "root mean squared error of predicting the mean"))
    if metric.get("max_error_estimate") is None:
        facts.append((_significant(metric["max_error_bound"], 2), f"largest error bound ({metric['bound_kind']})"))
        if metric.get("certain") is not None:
            facts.append((f"{metric['certain']:.2%}", "classes certain within the bound"))
    else:
        facts.append((_significant(metric["typical_error"], 2), "typical numerical error (estimate)"))
        share = f"largest numerical error of {STATED:.0%} of predictions (estimate)"
        facts.append((_significant(metric["max_error_estimate"], 2), share))
        if metric.get("certain_by_estimate") is not None:
            facts.append((f"{metric['certain_by_estimate']:.2%}", "classes certain within the estimate"))
    if metric.get("nll") is not None:
        facts.append((_significant(metric["nll"]), "negative log-likelihood (nats)"))
    tiles = "".join(f"<div><b>{escape(value)}</b><span>{escape(what)}</span></div>" for value, what in facts)
    name = entry_name(predictions.kernels[k], float(predictions.times[t]), float(predictions.ridges[r]))
    chosen = ""
    if chosen_entries(predictions).get(predictions.kernels[k]) == entry:
        chosen = f" Chosen on {escape(basis_of(predictions))}; the test points had no part in it."
    doubt = "".join(f" {MARK} {text[:1].upper()}{text[1:]}." for text in legend([metric.get("doubt")]))
    return f'<div class="tiles">{tiles}</div><p class="note">For {escape(name)}.{chosen}{escape(doubt)}</p>'


def _warnings(inputs: ReportInputs) -> str:
    warnings = inputs.summary.get("warnings") or ()
    items = "".join(f"<li>{escape(str(text))}</li>" for text in warnings)
    return f'<div class="warnings" role="note"><b>Warnings</b><ul>{items}</ul></div>' if items else ""


def _metric_tables(inputs: ReportInputs) -> str:
    def percent(value: float) -> str:
        return f"{100 * value:.2f}%"

    predictions = inputs.predictions
    if not predictions.has_targets:
        return '<p class="note">Nothing is known of the labels or targets of the test points.</p>'
    tables, uncertainty = [], []
    if predictions.is_classification:
        tables.append(_time_table(inputs, "accuracy", "Test accuracy", percent, max))
    tables.append(_time_table(inputs, "mse", "Test mean squared error", _significant, min))
    if not predictions.is_classification:
        tables.append(_time_table(inputs, "rmse", "Test root mean squared error", _significant, min))
        tables.append(_time_table(inputs, "r2", "Test R²", _significant, max))
    if predictions.variance is not None:
        uncertainty.append(_time_table(inputs, "nll", "Negative log-likelihood per target (nats)", _significant, min))
        uncertainty.append(_time_table(inputs, "coverage_90", "Targets within the 90% interval", percent, None))
        uncertainty.append(_time_table(inputs, "coverage_95", "Targets within the 95% interval", percent, None))
        if predictions.is_classification:
            uncertainty.append(_time_table(inputs, "ece", "Expected calibration error", _significant, min))
    note = "In colour: the best of each column, by these same test points. Times are in gradient steps"
    if predictions.ridge_scale == "relative":
        note += "; ridges are relative to the mean of the kernel's diagonal"
    if chosen_entries(predictions):
        note += f". Underlined: chosen on {escape(basis_of(predictions))}, without the test points"
    note += "".join(
        f". {MARK} {text[:1].upper()}{text[1:]}" for text in legend(m.get("doubt") for m in inputs.metrics["entries"])
    )
    tables += _target_table(inputs)
    page = f'<div class="side">{"".join(tables)}</div><p class="note">{note}.</p>'
    if uncertainty:
        page += (
            "<details><summary>Likelihood and calibration</summary>"
            f'<div class="side">{"".join(uncertainty)}</div></details>'
        )
    return page


def _time_table(inputs: ReportInputs, metric: str, title: str, show: Any, best: Any) -> str:
    """A metric with a row per time and a column per kernel and ridge."""
    predictions = inputs.predictions
    K, T, R = predictions.shape[:3]
    columns, shown = [], []
    for k, r in np.ndindex(K, R):
        values = [inputs.metric((k, t, r)).get(metric) for t in range(T)]
        known = [value for value in values if value is not None]
        top = best(known) if best is not None and T > 1 and known else None
        marks = [MARK if inputs.metric((k, t, r)).get("doubt") else "" for t in range(T)]
        cells = [
            ("–", "") if v is None else (show(v) + mark, "best" if v == top else "")
            for v, mark in zip(values, marks, strict=True)
        ]
        for kk, t, rr in chosen_entries(predictions).values():
            if (kk, rr) == (k, r):
                cells[t] = (cells[t][0], f"{cells[t][1]} chosen".strip())
        shown.append(cells)
        ridge = f", ridge {number(float(predictions.ridges[r]))}" if R > 1 else ""
        columns.append(kernel_name(predictions.kernels[k]) + ridge)
    rows = [([number(float(time))], [cells[t] for cells in shown]) for t, time in enumerate(predictions.times)]
    return _table(["time"], columns, rows, title)


def _folds(inputs: ReportInputs) -> str:
    """What cross-validation has found: by kernel the best time and ridge."""
    found = inputs.metrics.get("cross_validation") or {}
    rows = []
    for kernel, record in found.items():
        name = "accuracy" if "accuracy" in record else "rmse"
        if (best := record["best"]) is not None:
            spread = f"{_significant(best[name])} ± {_significant(best[f'{name}_standard_error'], 2)}"
            cells = [str(best["time"]), number(float(best["ridge"])), spread, _significant(best["mse"])]
            rows.append(([kernel_name(kernel)], [(cell, "") for cell in cells]))
    if not rows:
        return ""
    count, name = next(
        (one["folds"], "accuracy" if "accuracy" in one else "root mean square") for one in found.values()
    )
    columns = ["best time", "ridge", f"{name} ± standard error", "mean squared error"]
    note = f"{count} parts of the training points, each predicted from the others. All times and ridges are in metrics.json."
    return _table(["kernel"], columns, rows, "Best of each kernel") + f'<p class="note">{note}</p>'


def _target_table(inputs: ReportInputs) -> list[str]:
    """Errors of each target at the headline; nothing of one target alone."""
    found = inputs.metric(inputs.headline()).get("targets") or {}
    columns = ["rmse", "mae", "r2"]
    rows = [
        ([name], [("–" if one[c] is None else _significant(one[c]), "") for c in columns])
        for name, one in found.items()
    ]
    return [_table(["target"], ["root mean square", "mean absolute", "R²"], rows, "Errors by target")] if rows else []


def _bound_table(inputs: ReportInputs) -> str:
    predictions = inputs.predictions
    K, T, R = predictions.shape[:3]
    estimated, classes = predictions.error_estimate is not None, predictions.is_classification
    columns = ["typical error", "largest estimate", *(["certain by it"] if classes else [])] if estimated else []
    columns += ["median bound", "largest bound", *(["certain within it"] if classes else [])]
    rows = []
    for k in range(K):
        for r in range(R):
            for kind in BOUND_KINDS:
                picked = [inputs.metric((k, t, r)) for t in range(T) if predictions.bound_kind[k, t, r] == kind]
                if not picked:
                    continue
                cells = []
                if estimated:
                    typical = float(np.median([m["typical_error"] for m in picked]))
                    cells = [
                        (_significant(one, 2), "") for one in (typical, max(m["max_error_estimate"] for m in picked))
                    ]
                    cells += [_least(picked, "certain_by_estimate")] if classes else []
                cells += [
                    (_significant(float(np.median([m["median_error_bound"] for m in picked])), 2), ""),
                    (_significant(max(m["max_error_bound"] for m in picked), 2), ""),
                ]
                cells += [_least(picked, "certain")] if classes else []
                head = [kernel_name(predictions.kernels[k])] + ([number(float(predictions.ridges[r]))] if R > 1 else [])
                rows.append(([*head, kind.replace("_", " "), _count(len(picked), "time")], cells))
    heads = ["kernel"] + (["ridge"] if R > 1 else []) + ["kind", "entries"]
    what = "Estimates and bounds" if estimated else "Bounds"
    note = (
        f"{what} of the difference between the means given here and those of exact arithmetic, over all times of a row. "
        "The kind <i>estimate</i>: the bound rests on an approximation of the smallest eigenvalue. <i>Minimum norm</i>: directions "
        "that rounding cannot tell from null ones are left out, and nothing bounds the error."
    )
    if estimated:
        note += f" {STATED:.0%} of the errors are at most their estimates, most of them a fifth or less; a bound is for all."
    if classes:
        note += " <i>Certain</i>: test points whose predicted class no such error changes, at worst."
    return _table(heads, columns, rows) + f'<p class="note">{note}</p>'


def _least(picked: Sequence[Mapping[str, Any]], name: str) -> tuple[str, str]:
    """The smallest share of several entries, as a cell."""
    known = [metric[name] for metric in picked if metric.get(name) is not None]
    return (f"{100 * min(known):.2f}%" if known else "–", "")


def _confused_pairs(inputs: ReportInputs) -> str:
    predictions, entry = inputs.predictions, inputs.headline()
    if predictions.label is None or not np.isfinite(predictions.mean[entry]).all():
        return ""
    counts = confusion_matrix(predictions.label, predictions.mean[entry].argmax(1), len(predictions.class_names))
    totals = counts.sum(1)
    wrong = counts - np.diag(np.diag(counts))
    rows = []
    for flat in np.argsort(-wrong.ravel(), kind="stable")[:CONFUSED_PAIRS]:
        true, predicted = divmod(int(flat), len(totals))
        count = int(wrong[true, predicted])
        if count:
            names = predictions.class_names
            rows.append(([names[true], names[predicted]], [(str(count), ""), (f"{count / totals[true]:.1%}", "")]))
    return _table(["true class", "predicted as"], ["points", "of the class"], rows) if rows else ""


def _learning_rates(inputs: ReportInputs) -> str:
    rates = inputs.summary.get("max_learning_rate")
    if not rates:
        return ""
    used = inputs.predictions.attributes.get("learning_rate")
    rows = [([kernel_name(str(kernel))], [(_significant(float(rate)), "")]) for kernel, rate in rates.items()]
    note = "" if used is None else f'<p class="note">Learning rate of this run: {escape(_plain(used))}.</p>'
    return _table(["kernel"], ["largest stable learning rate"], rows) + note


def _signals(inputs: ReportInputs) -> str:
    lines = [str(line) for line in inputs.summary.get("signals") or ()]
    return f"<p>{'<br>'.join(escape(line[:1].upper() + line[1:]) for line in lines)}</p>" if lines else ""


def _timings(timings: Any) -> str:
    if not isinstance(timings, Mapping) or not timings:
        return ""
    total = sum(timings.values())
    rows = [
        ([str(stage)], [(_duration(seconds), ""), (f"{seconds / total:.0%}" if total > 0 else "–", "")])
        for stage, seconds in [*timings.items(), ("total", total)]
    ]
    return _table(["stage"], ["time", "share"], rows)


def _facts(summary: Mapping[str, Any]) -> str:
    """Configuration, data, kernel, hardware, versions and whatever else the summary holds."""
    names = [name for name in SECTIONS if name in summary]
    names += [name for name in summary if name not in (*SECTIONS, *OWN_PLACE)]
    parts = []
    for name in names:
        rows = [([path], [(text, "text")]) for path, text in _flatten(summary[name], "")]
        if rows:
            heading = escape(name.replace("_", " ").capitalize())
            parts.append(f"<details><summary>{heading}</summary>{_table(['setting'], ['value'], rows)}</details>")
    return "".join(parts)


def _flatten(value: Any, path: str) -> Iterable[tuple[str, str]]:
    """Nested values as (dotted path, text); a list of plain values stays on one line, as does a layer."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flatten(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)) and any(isinstance(item, (Mapping, list, tuple)) for item in value):
        for index, item in enumerate(value):
            yield f"{path}[{index}]" if path else str(index), _plain(item)
    else:
        yield path, _plain(value)


def _plain(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_plain(item) for item in value) + "]"
    return str(value)


def _significant(value: float, digits: int = 4) -> str:
    if not math.isfinite(value):
        return number(value)
    return f"{value:.{digits}g}"


def _duration(seconds: float) -> str:
    """`0.42 s`, `2 min 53 s`, `3 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
