from __future__ import annotations

import pytest

from ntkpipe.cli.stored import without_advice
from ntkpipe.tiles.ledger import REPAIR


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"the receipt x belongs to another tile. {REPAIR}", "the receipt x belongs to another tile."),
        ("a row is not finite: run `ntkpipe verify` to find the damaged tile", "a row is not finite"),
        ("predictions.zarr lacks mean", "predictions.zarr lacks mean"),
    ],
)
def test_verify_does_not_advise_to_run_verify(text, left):
    assert without_advice(text) == left
