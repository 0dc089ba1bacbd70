"""`ntkpipe catapult`: numbers as a table and as JSON."""

from __future__ import annotations

import json

import pytest


def test_json_has_the_reference_values(command):
    words = ("width=512", "rate=2.5", "f0=0.8", "lambda0=2", "target=0", "format=json")
    code, out, _ = command("catapult", *words)
    made = json.loads(out)
    assert code == 0
    assert (made["end"], made["steps"]) == ("converged", 32)
    assert made["lambda_end"] == pytest.approx(1.0222580794, abs=5e-11)
    assert made["peak_error"] == pytest.approx(7.486301763, abs=5e-10)


def test_what_diverges_is_valid_json(command):
    made = json.loads(command("catapult", "rate=4.2", "format=json")[1])
    assert made["end"] == "diverged"
    assert made["lambda_end"] is None


def test_the_table_has_a_line_per_number(command):
    code, out, _ = command("catapult")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["end", "steps", "lambda_end", "peak_error"]


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("width=0", "width=0"),
        ("width=a", "whole number"),
        ("rate=-1", "rate=-1.0"),
        ("rate=nan", "rate=nan must be a number"),
        ("f0=1000", "no network of width 512"),
        ("format=xml", "table, json"),
        ("depth=3", "no setting 'depth'"),
    ],
)
def test_bad_settings_are_named(command, word, text):
    code, _, err = command("catapult", word)
    assert code == 2
    assert text in err
