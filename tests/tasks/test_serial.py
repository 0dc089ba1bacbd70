from __future__ import annotations

import pytest

from ntkpipe.tasks.serial import SerialExecutor
from tests.conformance.executors import ExecutorConformance


class TestSerialExecutor(ExecutorConformance):
    @pytest.fixture(params=[1, 3])
    def executor(self, request: pytest.FixtureRequest) -> SerialExecutor:
        return SerialExecutor(request.param)


def test_workers_are_what_was_asked_for() -> None:
    assert SerialExecutor().workers == 1
    assert SerialExecutor(4).workers == 4
    with pytest.raises(ValueError, match="workers=0"):
        SerialExecutor(0)
