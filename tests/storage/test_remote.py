from __future__ import annotations

import pickle
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ntkpipe.errors import ConfigError, HeldError, ResourceError, StoreError
from ntkpipe.storage.answers import explain
from ntkpipe.storage.bucket import TIMEOUT_VARIABLE, forget_buckets
from ntkpipe.storage.retry import RETRY_VARIABLE, TemporaryError
from ntkpipe.storage.store import MissingObjectError, open_store
from tests import faulty_proxy
from tests.conformance.stores import HOLD, StoreConformance, kill, start
from tests.storage.conftest import BEAT

pytestmark = pytest.mark.network


class TestRemoteStore(StoreConformance):
    lease_outlives = 3 * BEAT + 2.5  # times are told to the second
    more_than_a_page = 1100
    counts_requests = True

    @pytest.fixture
    def store(self, s3_url):
        return open_store(s3_url)


class TestThroughFaults(StoreConformance):
    """Every tenth request is spoilt: all promises hold, whatever the server answers."""

    lease_outlives = 3 * BEAT + 3.0
    more_than_a_page = 50
    counts_requests = True

    @pytest.fixture
    def store(self, s3_endpoint, at_endpoint, request):
        with faulty_proxy.running(s3_endpoint, share=0.1, seed=len(request.node.name)) as proxy:
            yield open_store(at_endpoint(proxy.url))


@pytest.fixture
def store(s3_url):
    return open_store(s3_url)


@pytest.mark.parametrize("fault", [*faulty_proxy.FAULTS, "silence"])
def test_each_fault_alone_is_overcome_and_counted(s3_endpoint, at_endpoint, monkeypatch, fault):
    with faulty_proxy.running(s3_endpoint, share=0.5, seed=1, faults=(fault,)) as proxy:
        monkeypatch.setenv(TIMEOUT_VARIABLE, "0.5")
        store = open_store(at_endpoint(proxy.url))
        n = 2 if fault == "silence" else 10
        for k in range(n):
            assert store.put(f"k/{k}", bytes([k]) * 5000) is True
            assert store.get(f"k/{k}") == bytes([k]) * 5000
            assert store.put(f"k/{k}", b"other") is False
        assert list(store.list("k/")) == sorted(f"k/{k}" for k in range(n))
        found = store.statistics()
        assert found.bytes_written == found.bytes_read == n * 5000
        if fault == "delay":
            assert found.retries == 0
        else:
            assert found.retries == sum(found.causes.values()) == proxy.injected[fault] > 0
            cause = {"429": "throttled", "503": "throttled", "500": "server", "500 after": "server"}
            assert set(found.causes) == {cause.get(fault, "connection")}


@pytest.mark.parametrize("fault", faulty_proxy.AFTER)
def test_an_object_stored_by_a_request_whose_answer_got_lost_is_ours(s3_endpoint, at_endpoint, fault):
    with faulty_proxy.running(s3_endpoint, share=0.0, faults=(fault,)) as proxy:
        store = open_store(at_endpoint(proxy.url))
        store.put("theirs", b"same")
        proxy.share, sent = 1.0, store.statistics().kinds["put"].requests

        def calm() -> None:  # after the first request
            while store.statistics().kinds["put"].requests == sent:
                time.sleep(0.001)
            time.sleep(0.02)
            proxy.share = 0.0

        thread = threading.Thread(target=calm)
        thread.start()
        assert store.put("mine", b"same") is True
        thread.join()
        assert proxy.injected[fault] >= 1
        assert store.put("theirs", b"same") is False


class _Says(BaseHTTPRequestHandler):
    status, code = 403, "AccessDenied"

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        text = f"<Error><Code>{self.code}</Code><Message>because</Message></Error>".encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else text)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _answer  # noqa: N815

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def saying(at_endpoint):
    """A store whose server answers the same to everything."""
    servers = []

    def make(status: int, code: str):
        server = HTTPServer(("127.0.0.1", 0), type("Says", (_Says,), {"status": status, "code": code}))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        servers.append((server, thread))
        return open_store(at_endpoint(f"http://127.0.0.1:{server.server_port}"))

    yield make
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def test_what_is_not_allowed_is_named_and_not_repeated(saying):
    store = saying(403, "AccessDenied")
    for call, needed in (
        (lambda: store.get("k"), "read .* s3:GetObject .*s3:ListBucket"),
        (lambda: store.put("k", b""), "store .* s3:PutObject"),
        (lambda: store.size("k"), "s3:GetObject"),
        (lambda: list(store.list()), "list .* s3:ListBucket"),
        (lambda: store.delete("k"), "delete .* s3:DeleteObject"),
    ):
        with pytest.raises(StoreError, match=needed):
            call()
    assert store.statistics().retries == 0


@pytest.mark.parametrize(
    ("status", "code", "kind", "said"),
    [
        (403, "InvalidAccessKeyId", StoreError, "refuses the credentials.*AWS_ACCESS_KEY_ID"),
        (400, "ExpiredToken", StoreError, "refuses the credentials"),
        (403, "RequestTimeTooSkewed", StoreError, "clock"),
        (404, "NoSuchBucket", StoreError, "no bucket"),
        (507, "XMinioStorageFull", ResourceError, "no space.*ntkpipe clean"),
        (501, "NotImplemented", StoreError, "does not support put-if-absent"),
        (400, "EntityTooLarge", StoreError, "cannot store .*EntityTooLarge: because"),
    ],
)
def test_answers_that_mean_something_come_out_at_once(saying, status, code, kind, said):
    store = saying(status, code)
    with pytest.raises(kind, match=said) as caught:
        store.put("k", b"v")
    assert store.statistics().requests == 1
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "code"), [(503, "SlowDown"), (400, "RequestTimeout"), (409, "ConditionalRequestConflict")]
)
def test_a_server_that_does_not_recover_is_given_up_after_the_stated_time(saying, monkeypatch, status, code):
    store = saying(status, code)
    monkeypatch.setenv(RETRY_VARIABLE, "0.5")
    forget_buckets()
    began = time.monotonic()
    with pytest.raises(StoreError, match=rf"put s3://.*/k failed \d+ times .*{code}.*{RETRY_VARIABLE} \(now 0.5\)"):
        store.put("k", b"v")
    assert time.monotonic() - began < 5
    assert store.statistics().retries > 0


def test_without_a_server_the_address_is_named(at_endpoint, monkeypatch):
    store = open_store(at_endpoint("http://127.0.0.1:9"))
    monkeypatch.setenv(RETRY_VARIABLE, "0")
    with pytest.raises(StoreError, match=r"get s3://.*refused"):
        store.get("k")


def test_without_credentials_the_variables_are_named():
    # The client then asks the cloud's metadata service, which nobody else has.
    text = "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 1ms - HTTP error"
    error = explain(RuntimeError(text), "get", "s3", "s3://bucket/x", "k")
    assert isinstance(error, TemporaryError)
    assert error.at_most == 3
    assert "no credentials for s3://bucket/x: set AWS_ACCESS_KEY_ID" in str(error)


def test_secrets_are_in_no_handle_and_no_text(store, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush-hush")
    store.put("k", b"v")
    assert b"hush" not in pickle.dumps(store)
    assert "hush" not in repr(store) + str(vars(store))
    said = RuntimeError(
        "status code: 400 Bad Request: signed with hush-hush-hush at http://host/k?X-Amz-Signature=hush"
    )
    assert "hush" not in str(explain(said, "get", "s3", store.url, "k"))


def test_a_missing_bucket_and_a_missing_object_differ(at_endpoint, s3_endpoint):
    at_endpoint(s3_endpoint)
    with pytest.raises(StoreError, match="no bucket for s3://nobody-has-this"):
        open_store("s3://nobody-has-this/x").put("k", b"v")
    with pytest.raises(MissingObjectError):
        open_store("s3://bucket/x").get("k")


def test_a_store_is_its_prefix(s3_url):
    outer, inner = open_store(s3_url), open_store(f"{s3_url}/inner")
    inner.put("k", b"v")
    assert outer.get("inner/k") == b"v"
    assert list(outer.list()) == ["inner/k"]
    assert list(inner.list()) == ["k"]
    assert outer.free_bytes() is None
    assert outer.sweep(older_than=0.0) == []


# ---- leases


def test_a_holder_that_was_taken_for_dead_notices_at_its_next_beat(store):
    with store.lease("run", holder="slow") as lease:
        assert lease.number == 1
        path = f"{store.url}/.leases/run"
        bucket = store._bucket
        bucket.write(
            ".leases/run/0000000002", [memoryview(b'{"pid": 1, "host": "other", "since": "now"}')], create=True
        )
        deadline = time.monotonic() + 10
        while not lease.lost and time.monotonic() < deadline:
            time.sleep(0.05)
        assert lease.lost, path
        with pytest.raises(HeldError, match="taken over by process 1 on other"):
            lease.check()
    with pytest.raises(HeldError, match="process 1 on other"), store.lease("run", holder="late"):
        pass  # the loser's end does not free what is another's


def test_numbers_grow_and_old_ones_go(store):
    numbers = []
    for _ in range(3):
        with store.lease("a/b", holder="x") as lease:
            numbers.append(lease.number)
    assert numbers == [1, 2, 3]
    assert [entry.path for entry in store._bucket.children(".leases/a/b")[1]] == [".leases/a/b/0000000003"]


def test_a_living_holder_keeps_its_lease_for_longer_than_three_beats(store):
    process = start(HOLD, store.url)
    try:
        for _ in range(4):
            time.sleep(0.6)
            with pytest.raises(HeldError, match=f"process {process.pid}"), store.lease("run", holder="x"):
                pass
    finally:
        kill(process)


def test_a_server_that_ignores_put_if_absent_is_found_out(store, monkeypatch):
    import obstore

    put = obstore.put

    def careless(*args, **kwargs):
        return put(*args, **{**kwargs, "mode": "overwrite"})

    monkeypatch.setattr(obstore, "put", careless)
    with pytest.raises(StoreError, match="ignores If-None-Match"), store.lease("run", holder="x"):
        pass


def test_one_of_many_takes_a_free_lease(store):
    held, refused = [], []
    gate = threading.Barrier(6)

    def take(k: int) -> None:
        gate.wait()
        try:
            with store.lease("run", holder=str(k)):
                held.append(k)
                done.wait(20)
        except HeldError:
            refused.append(k)
            if len(refused) == 5:
                done.set()

    done = threading.Event()
    threads = [threading.Thread(target=take, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        with suppress(RuntimeError):
            thread.join(30)
    assert (len(held), len(refused)) == (1, 5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_ENDPOINT_URL", "nonsense"),
        ("AWS_ENDPOINT_URL", "http://"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:99999"),
        ("AWS_ENDPOINT_URL", "http://ho st"),
        ("AWS_REGION", "not/a region"),
    ],
)
def test_a_wrong_word_in_the_environment_names_its_variable(at_endpoint, monkeypatch, name, value):
    url = at_endpoint("http://127.0.0.1:9")
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=name):
        open_store(url).get("k")
