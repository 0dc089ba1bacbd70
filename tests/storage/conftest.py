from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from ntkpipe.storage.bucket import forget_buckets
from ntkpipe.storage.lease import BEAT_VARIABLE
from ntkpipe.storage.retry import RETRY_VARIABLE
from tests import s3_server

BEAT = 0.2


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """URL of an S3 server on loopback that lives as long as the tests."""
    with s3_server.running() as url:
        yield url


@pytest.fixture
def at_endpoint(monkeypatch: pytest.MonkeyPatch):
    """Point this process, and those that it starts, to an S3 endpoint."""

    def point(url: str) -> str:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret of tests")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        monkeypatch.setenv(RETRY_VARIABLE, "30")
        monkeypatch.setenv(BEAT_VARIABLE, str(BEAT))
        forget_buckets()
        return f"s3://{s3_server.BUCKET}/{uuid.uuid4().hex}/store"

    yield point
    forget_buckets()


@pytest.fixture
def s3_url(s3_endpoint: str, at_endpoint) -> str:
    """Of an empty store that nobody else uses."""
    return at_endpoint(s3_endpoint)
