"""A Gram computation whose store answers with resets, refusals and cut bodies: the same bytes are stored."""

from __future__ import annotations

import uuid

import pytest

from ntkpipe.gram.from_config import pair_cost
from ntkpipe.gram.stage import compute_gram
from ntkpipe.gram.task import GramJob, Output
from ntkpipe.planning.tiles import plan_gram
from ntkpipe.storage.memory import MemoryStore
from ntkpipe.storage.retry import RETRY_VARIABLE
from ntkpipe.storage.store import open_store
from ntkpipe.tasks.serial import SerialExecutor
from ntkpipe.tiles import ledger
from ntkpipe.tiles.audit import verify
from ntkpipe.tiles.store import GramStore
from tests import faulty_proxy, s3_server
from tests.gram.test_task import EDGE, IDENTITY, N_TEST, N_TRAIN, SPEC, SeededImages


def compute(objects) -> GramStore:
    gram = GramStore.create_or_open(objects, IDENTITY)
    plan = plan_gram(
        n_train=N_TRAIN,
        n_test=N_TEST,
        spec=SPEC,
        cost=pair_cost(SPEC, (4, 4, 2)),
        edge=EDGE,
        kernel_dtype="float64",
        store_dtype="float64",
    )
    with gram.lease("a test"):
        report = compute_gram(SerialExecutor(), GramJob((Output(gram, tuple(SPEC)),), SeededImages()), plan)
    assert (report.computed, report.reused) == (18, 0)
    return gram


def chunks(gram: GramStore) -> dict[str, bytes]:
    return {key: gram.objects.get(key) for key in gram.objects.list(gram.layout.key("tiles.zarr/"))}


@pytest.mark.network
def test_the_same_bytes_are_stored_through_faults(monkeypatch):
    expected = chunks(compute(MemoryStore(uuid.uuid4().hex)))
    for name, value in (("ACCESS_KEY_ID", "tests"), ("SECRET_ACCESS_KEY", "a secret"), ("REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv(RETRY_VARIABLE, "60")
    with s3_server.running() as server, faulty_proxy.running(server, share=0.2, seed=5) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        objects = open_store(f"s3://{s3_server.BUCKET}/{uuid.uuid4().hex}")
        gram = compute(objects)
        assert gram.compact(4) >= 4
        assert chunks(gram) == expected
        assert list(verify(gram)) == []
        ledger._known.clear()
        assert [list(gram.missing(block)) for block in gram.blocks] == [[], []]
        found = objects.statistics()
        assert found.retries >= 10
        assert set(found.causes) == {"throttled", "server", "connection"}
        assert sum(proxy.injected.values()) >= found.retries  # delays are no reason to repeat
