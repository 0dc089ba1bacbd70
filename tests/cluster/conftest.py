from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ntkpipe.config import ClusterConfig
from ntkpipe.tasks.executor import Executor


@pytest.fixture(scope="session")
def session() -> Iterator[Executor]:
    """One Ray for all tests of this folder: starting it takes five seconds.

    `NTKPIPE_TEST_CLUSTER=host:port pytest tests/cluster/test_ray_executor.py` puts a cluster of one's own to the test instead.
    """
    from ntkpipe.cluster.session import open_executor

    address = os.environ.get("NTKPIPE_TEST_CLUSTER")
    config = ClusterConfig(workers=2, retries=2)
    if address is not None:
        config = ClusterConfig(kind="ray", address=address, max_workers=2, retries=2)
    with open_executor(config) as executor:
        yield executor


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Clusters are started where another test has computed with JAX, which warns of forks; Ray's exec at once."""
    ignored = pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(ignored)
