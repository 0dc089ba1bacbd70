"""Few test points do not take whole tiles of many rows."""

from __future__ import annotations

import pytest

from ntkpipe.planning.shapes import following


@pytest.mark.parametrize(
    ("edge", "used", "there", "expected"),
    [
        (2048, 200, 10_000, 256),
        (2048, 10_000, 10_000, 2048),
        (2048, 900, 10_000, 1024),
        (2048, 1, 10_000, 256),
        (2048, 200, 220, 2048),
        (128, 10, 10_000, 128),
    ],
)
def test_the_edge_follows(edge, used, there, expected):
    assert following(edge, used, there) == expected
