from __future__ import annotations

import sys
from subprocess import run

import pytest

from ntkpipe.errors import ConfigError
from ntkpipe.storage.local import LocalStore
from ntkpipe.storage.store import open_store


def test_a_path_and_a_file_url_are_the_same_store(tmp_path):
    folder = tmp_path / "with space"
    assert open_store(str(folder)) == LocalStore(folder)
    assert open_store(folder.as_uri()) == LocalStore(folder)
    assert open_store(open_store(str(folder)).url) == LocalStore(folder)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://host/x", "give a folder"),
        ("s3a://bucket/x", "write s3://bucket/x"),
        ("s3:///x", "bucket's name"),
        ("s3://host:9000/bucket", "endpoint is given in the environment"),
        ("gs://bucket/a/../b", "normalised"),
        ("az://box/a%2fb", "normalised"),
    ],
)
def test_other_urls_are_refused(url, said):
    with pytest.raises(ConfigError, match=said):
        open_store(url)


@pytest.mark.parametrize(
    "url",
    [
        "s3://KEYID:hush@bucket/x",
        "s3://hush@bucket",
        "az://box/x?sig=hush",
        "https://u:hush@host/x",
        "gs://bucket/x#hush",
    ],
)
def test_a_url_with_credentials_is_refused_without_repeating_them(url):
    with pytest.raises(ConfigError, match="environment") as caught:
        open_store(url)
    assert "hush" not in str(caught.value)
    assert "KEYID" not in str(caught.value)


@pytest.mark.parametrize("url", ["s3://bucket/a/b", "s3://bucket", "gs://bucket/a", "az://box/a"])
def test_remote_urls_are_normalised_and_nothing_is_asked_before_the_first_use(url):
    store = open_store(url + "/")
    assert store.url == url
    assert open_store(store.url) == store


def test_a_file_url_with_a_host_is_refused():
    with pytest.raises(ConfigError, match="three slashes"):
        open_store("file://data/store")


def test_the_room_imports_without_the_heavy_libraries():
    code = "import sys, ntkpipe.storage.store; print([m for m in ('jax', 'ray', 'zarr', 'hydra', 'obstore') if m in sys.modules])"
    assert run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
