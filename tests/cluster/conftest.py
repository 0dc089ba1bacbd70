from __future__ import annotations

from collections.abc import Iterator

import pytest

from ntkpipe.config import ClusterConfig
from ntkpipe.tasks.executor import Executor


@pytest.fixture(scope="session")
def session() -> Iterator[Executor]:
    """One Ray for all tests of this folder: starting it takes five seconds."""
    from ntkpipe.cluster.session import local_session

    with local_session(ClusterConfig(workers=2, retries=2)) as executor:
        yield executor
