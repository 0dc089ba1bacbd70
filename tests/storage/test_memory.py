from __future__ import annotations

import uuid

import pytest

from ntkpipe.storage.memory import MemoryStore
from tests.conformance.stores import StoreConformance


class TestMemoryStore(StoreConformance):
    between_processes = False

    @pytest.fixture
    def store(self):
        return MemoryStore(uuid.uuid4().hex)


def test_names_are_separate():
    a, b = MemoryStore(uuid.uuid4().hex), MemoryStore(uuid.uuid4().hex)
    a.put("k", b"v")
    assert not b.exists("k")
    assert a.free_bytes() is None
