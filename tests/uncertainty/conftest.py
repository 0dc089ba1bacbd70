from __future__ import annotations

from collections.abc import Iterator

import pytest
from blank_figures import blank_figures, drawn_figures


@pytest.fixture(scope="module", autouse=True)
def _blank_figures() -> Iterator[None]:
    with blank_figures():
        yield


@pytest.fixture
def drawn() -> Iterator[None]:
    with drawn_figures():
        yield
