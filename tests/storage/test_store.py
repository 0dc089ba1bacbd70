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


@pytest.mark.parametrize("url", ["s3://bucket/x", "gs://bucket", "http://host/x"])
def test_other_schemes_are_refused(url):
    with pytest.raises(ConfigError, match="file systems only"):
        open_store(url)


def test_a_file_url_with_a_host_is_refused():
    with pytest.raises(ConfigError, match="three slashes"):
        open_store("file://data/store")


def test_the_room_imports_without_the_heavy_libraries():
    code = "import sys, ntkpipe.storage.store; print([m for m in ('jax', 'ray', 'zarr', 'hydra') if m in sys.modules])"
    assert run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
