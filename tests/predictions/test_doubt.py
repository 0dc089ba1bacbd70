from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ntkpipe.predictions.doubt import MARK, REASONS, doubt_of, legend
from ntkpipe.predictions.metrics import compute_metrics
from ntkpipe.report.figures import write_figures
from ntkpipe.report.inputs import ReportInputs
from ntkpipe.report.page import render_page
from ntkpipe.report.terminal import summary

ENTRY = (0, 2, 0)


def changed(predictions, **changes):
    fields = {field.name: getattr(predictions, field.name) for field in dataclasses.fields(predictions)}
    return type(predictions)(**{**fields, **changes})


def spoilt(make, reason):
    """Predictions of which one entry is in doubt."""
    sound = make(p=40)
    bound, kind, mean = sound.error_bound.copy(), sound.bound_kind.astype("<U12"), sound.mean.copy()
    if reason == "minimum_norm":
        bound[ENTRY], kind[ENTRY] = np.inf, reason
    elif reason == "no_bound":
        bound[(*ENTRY, 3)] = np.inf
    elif reason == "bound_exceeds_prediction":
        bound[ENTRY] = 10.0
    elif reason == "estimate_exceeds_prediction":
        estimate = np.zeros_like(bound)
        bound[ENTRY], estimate[ENTRY] = 20.0, 10.0
        return changed(sound, error_bound=bound, error_estimate=estimate)
    else:
        mean[(*ENTRY, 0)] = np.nan
    return changed(sound, error_bound=bound, bound_kind=kind, mean=mean)


def test_sound_predictions_carry_no_mark(make):
    sound = make()
    assert all(doubt_of(sound, entry) is None for entry in sound.entries())
    metrics = compute_metrics(sound)
    assert not any(MARK in line for line in summary(metrics))
    assert all(entry["doubt"] is None for entry in metrics["entries"])


def test_an_estimate_takes_the_place_of_a_bound_that_says_nothing(make):
    bounded = spoilt(make, "bound_exceeds_prediction")
    estimated = changed(bounded, error_estimate=np.minimum(bounded.error_bound, 1e-3))
    assert doubt_of(bounded, ENTRY) == "bound_exceeds_prediction"
    assert doubt_of(estimated, ENTRY) is None


@pytest.mark.parametrize("reason", REASONS)
def test_doubt_is_marked_wherever_the_number_is_read(make, reason, tmp_path):
    predictions = spoilt(make, reason)
    assert [e for e in predictions.entries() if doubt_of(predictions, e)] == [ENTRY]
    assert doubt_of(predictions, ENTRY) == reason
    metrics = compute_metrics(predictions)
    assert [m["doubt"] for m in metrics["entries"]].count(reason) == 1
    table = summary(metrics)
    (row,) = (line for line in table if line.startswith("ntk, ridge 0 "))
    assert row.rstrip().endswith(MARK)
    assert f"{MARK} {REASONS[reason]}" in table
    assert sum(line.count(MARK) for line in table) == 2
    inputs = ReportInputs(predictions, metrics)
    figures = write_figures(inputs, tmp_path)
    assert REASONS[reason] in figures[0].caption
    page = render_page(inputs, figures)
    assert REASONS[reason][1:] in page
    if reason != "not_finite":
        accuracy = next(m["accuracy"] for m in metrics["entries"] if m["doubt"])
        assert f"{100 * accuracy:.2f}%{MARK}" in page


def test_the_legend_names_each_reason_once():
    assert legend([None, "no_bound", "no_bound"]) == [REASONS["no_bound"]]
    assert legend([None]) == []
