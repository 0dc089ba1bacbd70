"""The prose linter finds what it is made for, and passes over code."""

from __future__ import annotations

import pytest
from prose import RULES, faults, sentences


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.example[:30])
def test_every_rule_finds_its_example(rule):
    found = faults(f"# Heading\n\nA line before.\n\n{rule.example}\n", "page.md")
    assert [line for line in found if line.startswith("page.md:5") and f".{rule.name}:" in line], found


def test_long_sentences_are_found_with_their_line():
    text = "Short.\n\n" + "word " * 41 + "end.\n"
    assert [line.split(" words")[0] for line in faults(text, "page.md")] == ["page.md:3: ntkpipe.long_sentence: 42"]
    assert not faults("Short.\n\n" + "word " * 20 + "end. " + "Word " * 20 + "end.\n", "page.md")


def test_acronyms_are_spelled_out_at_their_first_mention():
    assert "spell out NTK" in faults("The NTK of a network.\n", "page.md")[0]
    assert not faults("The neural tangent kernel (NTK) is a kernel. The NTK is exact.\n", "page.md")
    assert not faults("The NTK (neural tangent kernel) is a kernel.\n", "page.md")


def test_code_and_addresses_are_no_prose():
    text = "A command, `in any memory`:\n\n```\nthis very line, obviously\n```\n\n[A page](obviously.md), https://obviously.org\n"
    assert not faults(text, "page.md")


def test_docstrings_are_read_and_code_is_not():
    text = '"""It runs in any memory."""\n\nname = "in any memory"\n'
    assert [line.split(":")[1] for line in faults(text, "module.py", code=True)] == ["1"]


def test_items_cells_and_headings_are_sentences_of_their_own():
    text = "# Heading\n\nA line.\nOne more\nline.\n- an item\n- another\n\n| cell | other |\n|---|---|\n"
    found = [sentence for _, sentence in sentences(text)]
    assert found[:5] == ["Heading", "A line.", "One more line.", "an item", "another"]
    assert "cell" in found


def test_proselint_itself_is_on():
    assert "proselint" not in faults("It is very unique.\n", "page.md")[0]


def test_terse_docstrings_are_found_where_all_are_written_in_full():
    text = '"""A module."""\n\n\ndef never():\n    """Never."""\n'
    assert "terse" in faults(text, "ntkpipe/stax/a.py", code=True)[0]
    assert not faults(text, "ntkpipe/gram/a.py", code=True)
