from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> Iterator[None]:
    """Each module compiles hundreds of networks that no other one asks for: gigabytes, if they were kept."""
    yield
    jax.clear_caches()
