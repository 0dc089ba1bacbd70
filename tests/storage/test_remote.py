from __future__ import annotations

import pytest

from ntkpipe.storage.store import open_store
from tests.conformance.stores import StoreConformance
from tests.storage.conftest import BEAT


@pytest.mark.network
class TestRemoteStore(StoreConformance):
    lease_outlives = 3 * BEAT + 2.5  # times are told to the second
    more_than_a_page = 1100

    @pytest.fixture
    def store(self, s3_url):
        return open_store(s3_url)
