"""Writes one self-contained HTML page about a run.

The page has one short script, loads nothing from elsewhere, and escapes every text.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ntkpipe.dynamics.estimates import STATED
from ntkpipe.extras import install, is_installed
from ntkpipe.predictions.choice import basis_of, chosen_entries
from ntkpipe.predictions.doubt import MARK, legend
from ntkpipe.predictions.refinement import describe_refinement
from ntkpipe.predictions.schema import BOUND_KINDS
from ntkpipe.report.along_training import along_training
from ntkpipe.report.facts import facts as _facts
from ntkpipe.report.facts import plain as _plain
from ntkpipe.report.facts import timings as _timings
from ntkpipe.report.html import FigureFile, document, write_page
from ntkpipe.report.html import figures as _figures
from ntkpipe.report.html import section as _section
from ntkpipe.report.html import table as _table
from ntkpipe.report.inputs import ReportInputs, confusion_matrix
from ntkpipe.report.network import network_svg
from ntkpipe.report.style import entry_name, kernel_name, number

# The slider shows these figures at every time, so the page leaves out the headline's versions, which the files hold.
ALONG_TRAINING = ("confusion", "reliability")
CONFUSED_PAIRS = 8


def write_report(inputs: ReportInputs, folder: str | os.PathLike[str]) -> Path:
    """Write `report.html` and the figures it shows (`figures/*.png`, `figures/*.svg`) into a folder.

    Without matplotlib there are no figures, and the page says how to get them.

    Args:
        inputs: the data of the report.
        folder: folder of the page, created if absent.

    Returns:
        Path of the page.
    """
    folder, figures = Path(folder), ()
    if is_installed("matplotlib"):
        from ntkpipe.report.figures import write_figures  # before the folder is made, as matplotlib may be broken

        figures = write_figures(inputs, folder / "figures")
    folder.mkdir(parents=True, exist_ok=True)
    return write_page(folder / "report.html", render_page(inputs, figures))


def render_page(inputs: ReportInputs, figures: Sequence[FigureFile]) -> str:
    """Return the page as HTML text. Figures are inlined as images, so that they cannot run code or clash."""
    summary = inputs.summary
    title = str(summary.get("title") or "Predictions of infinitely wide networks")
    # With bars or several targets, this figure shows more than the slider's panel.
    more = inputs.predictions.variance is not None or inputs.predictions.shape[4] > 1
    repeated = ALONG_TRAINING if more else (*ALONG_TRAINING, "scatter")
    body = [
        f"<header><h1>{escape(title)}</h1>{_lead(inputs)}</header>",
        _tiles(inputs),
        _warnings(inputs),
        _section("Along training", moving := along_training(inputs)),
        _section(
            "Figures", _figures([f for f in figures if not (moving and f.name in repeated)]) or _without_figures()
        ),
        _section("Accuracy and loss", _metric_tables(inputs)),
        _section("Numerical error", _bound_table(inputs)),
        _beside(
            _section("Cross-validation", _folds(inputs)),
            _section("Most frequent confusions", _confused_pairs(inputs)),
            _section("Learning rate", _learning_rates(inputs)),
            _section("Time per stage", _timings(summary.get("timings"))),
        ),
        _section("The network", _network(inputs)),
        _section("The run", _facts(summary)),
        f"<footer>Predictions {escape(inputs.predictions.fingerprint())}</footer>",
    ]
    return document(title, [part for part in body if part])


def _beside(*sections: str) -> str:
    """Return short sections, which are side by side if the page is wide."""
    held = "".join(sections)
    return f'<div class="side">{held}</div>' if held else ""


def _without_figures() -> str:
    """Return a note if matplotlib is not installed; empty if it is installed and there is nothing to draw."""
    if is_installed("matplotlib"):
        return ""
    return (
        f'<p class="note">Figures need matplotlib: <code>{escape(install("report"))}</code>, then '
        "<code>ntkpipe report run_dir=DIR</code>.</p>"
    )


def _lead(inputs: ReportInputs) -> str:
    K, T, R, p, c = inputs.predictions.shape
    outputs = "class" if inputs.predictions.predicts_classes else "output"
    parts = [_count(K, "kernel"), _count(T, "training time"), _count(R, "ridge"), _count(p, "test point")]
    return f'<p class="lead">{", ".join([*parts, _count(c, outputs)])}.</p>'


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def _tiles(inputs: ReportInputs) -> str:
    """Return the most important numbers of the headline entry as HTML."""
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
        share = f"{STATED:.0%} of numerical errors are below this (estimate)"
        facts.append((_significant(metric["max_error_estimate"], 2), share))
        if metric.get("certain_by_estimate") is not None:
            facts.append((f"{metric['certain_by_estimate']:.2%}", "classes certain within the estimate"))
    if metric.get("nll") is not None:
        facts.append((_significant(metric["nll"]), "negative log-likelihood (nats)"))
    tiles = "".join(f"<div><b>{escape(value)}</b><span>{escape(what)}</span></div>" for value, what in facts)
    name = entry_name(predictions.kernels[k], float(predictions.times[t]), float(predictions.ridges[r]))
    chosen = ""
    if chosen_entries(predictions).get(predictions.kernels[k]) == entry:
        chosen = f" Chosen on {escape(basis_of(predictions))}, without the test points."
    doubt = "".join(f" {MARK} {text[:1].upper()}{text[1:]}." for text in legend([metric.get("doubt")]))
    refined = ""
    if metric.get("refined"):
        text = describe_refinement(inputs.metrics["refinement"][predictions.kernels[k]])
        refined = f" {text[:1].upper()}{text[1:]}."
    return f'<div class="tiles">{tiles}</div><p class="note">These numbers are for {escape(name)}.{chosen}{escape(refined + doubt)}</p>'


def _warnings(inputs: ReportInputs) -> str:
    warnings = inputs.summary.get("warnings") or ()
    items = "".join(f"<li>{escape(str(text))}</li>" for text in warnings)
    return f'<div class="warnings" role="note"><b>Warnings</b><ul>{items}</ul></div>' if items else ""


def _metric_tables(inputs: ReportInputs) -> str:
    def percent(value: float) -> str:
        return f"{100 * value:.2f}%"

    predictions = inputs.predictions
    if not predictions.has_targets:
        return '<p class="note">The test points have no labels or targets.</p>'
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
    note = "In colour: the best value of each column on these test points. Times are in gradient steps"
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
    """Return a table of a metric, with a row per time and a column per kernel and ridge."""
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
    """Return a table of the best time and ridge of every kernel by cross-validation; empty if there was none."""
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
    note = (
        f"Each of {count} parts of the training points is predicted from the others. metrics.json lists all times "
        "and ridges."
    )
    return _table(["kernel"], columns, rows, "Best of each kernel") + f'<p class="note">{note}</p>'


def _target_table(inputs: ReportInputs) -> list[str]:
    """Return a table of the errors of each target at the headline entry; empty if there is one target."""
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
    columns = ["typical error", "largest estimate", *(["certain (estimate)"] if classes else [])] if estimated else []
    columns += ["median bound", "largest bound", *(["certain (bound)"] if classes else [])]
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
    heads = ["kernel"] + (["ridge"] if R > 1 else []) + ["kind of bound", "entries"]
    what = "Estimates and bounds" if estimated else "Bounds"
    note = (
        f"{what} of the difference between these means and those of exact arithmetic, over all times of a row. The "
        "kind <i>estimate</i> means that the bound uses an approximation of the smallest eigenvalue. <i>Minimum "
        "norm</i> means that directions below the rounding error are left out, and that no bound is known."
    )
    if estimated:
        note += (
            f" {STATED:.0%} of the errors are at most their estimates, and most are at most a fifth of them; a "
            "bound holds for all."
        )
    if classes:
        note += " <i>Certain</i> is the share of test points whose predicted class cannot change by such an error."
    return _table(heads, columns, rows) + f'<p class="note">{note}</p>'


def _least(picked: Sequence[Mapping[str, Any]], name: str) -> tuple[str, str]:
    """Return the smallest share of several entries as a cell."""
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


def _network(inputs: ReportInputs) -> str:
    """Return the architecture as a diagram, and texts on how signals change through the layers."""
    kernel = inputs.summary.get("kernel")
    layers = kernel.get("layers") if isinstance(kernel, Mapping) else None
    shape = (inputs.summary.get("data") or {}).get("image shape")
    drawn = f'<div class="scroll">{network_svg(layers, shape)}</div>' if layers else ""
    lines = [str(line) for line in inputs.summary.get("signals") or ()]
    said = "<br>".join(escape(line[:1].upper() + line[1:].rstrip(".") + ".") for line in lines)
    said = f"<h3>Signals through the layers</h3><p>{said}</p>" if said else ""
    return f'<div class="side">{drawn}<div class="note">{said}</div></div>' if drawn or said else ""


def _significant(value: float, digits: int = 4) -> str:
    if not math.isfinite(value):
        return number(value)
    return _exponents(f"{value:#.{digits}g}").rstrip(".")  # trailing zeros keep the digits of a column aligned


def _exponents(text: str) -> str:
    """Return `2.0e-05` as `2.0e-5`, as in the figures."""
    return re.sub(r"e([+-])0*(\d)", lambda m: f"e{'-' if m[1] == '-' else ''}{m[2]}", text)
