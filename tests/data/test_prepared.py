from __future__ import annotations

import dataclasses
import json
import multiprocessing
import pickle
import subprocess
import sys

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkpipe.config import DataConfig
from ntkpipe.data import prepared, prepared_layout
from ntkpipe.data.dataset import load_dataset
from ntkpipe.data.prepared import PreparedImages, prepared_prefixes, verify_prepared, write_prepared
from ntkpipe.errors import CorruptionError, IncompleteError, StoreError
from ntkpipe.storage.store import open_store

CONFIG = DataConfig(kind="synthetic", n_train=50, n_test=17, shape=(4, 3, 2), classes=5)


@pytest.fixture
def small_chunks(monkeypatch):
    # 7 images of 4 x 3 x 2 float32 values: ragged last chunks in both blocks.
    monkeypatch.setattr(prepared_layout, "_CHUNK_BYTES", 7 * 4 * 3 * 2 * 4)
    forget()


def forget():
    """As a new process would: nothing cached."""
    prepared._cached_manifest.cache_clear()
    prepared._chunks = prepared_layout.ChunkCache(1 << 20)


@pytest.fixture
def written(tmp_path, small_chunks):
    data = load_dataset(CONFIG)
    store = open_store(str(tmp_path))
    return data, store, write_prepared(data, store)


def test_zarr_reads_it(written, tmp_path):
    data, _, images = written
    group = zarr.open_group(str(tmp_path / images.prefix), mode="r")
    for block in ("train", "test"):
        array = group[block]
        np.testing.assert_array_equal(array[:], getattr(data, f"x_{block}"))
        assert array.chunks == (7, 4, 3, 2)
        assert array.metadata.dimension_names == (f"{block}_image", "height", "width", "channel")
    path = tmp_path / images.prefix / "train/c/3/0/0/0"
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        group["train"][:]


def test_any_rows_read_back(written):
    data, _, images = written

    @settings(deadline=None, max_examples=60)
    @given(st.sampled_from(["train", "test"]), st.data())
    def check(block, draw):
        x = getattr(data, f"x_{block}")
        start = draw.draw(st.integers(0, len(x)))
        stop = draw.draw(st.integers(start, len(x)))
        rows = images.read(block, start, stop)
        assert rows.dtype == np.float32
        assert np.array_equal(rows, x[start:stop])

    check()
    for bad in ((-1, 3), (0, 51), (3, 2)):
        with pytest.raises(IndexError):
            images.read("train", *bad)


def test_everything_comes_back(written):
    data, _, images = written
    again = images.dataset(n_train=20, n_test=5)
    for field in dataclasses.fields(data):
        a, b = getattr(data, field.name), getattr(again, field.name)
        if field.name in ("n_train", "n_test"):
            continue
        assert np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b, field.name
    assert (again.n_train, again.n_test) == (20, 5)
    assert images.shape("train") == (50, 4, 3, 2)
    assert images.fingerprint == data.fingerprint


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_regression_and_dtypes(dtype, tmp_path):
    data = load_dataset(dataclasses.replace(CONFIG, labels="regression"), dtype=dtype)
    images = write_prepared(data, open_store(str(tmp_path)))
    assert images.prefix.endswith(dtype)
    assert images.dtype == dtype
    labels = images.labels()
    assert labels.labels_train is None
    np.testing.assert_array_equal(labels.y_train, data.y_train)


def test_handle_is_cheap_and_works_elsewhere(written):
    data, _, images = written
    content = pickle.dumps(images)
    assert len(content) < 1000
    code = (
        "import pickle, sys; images = pickle.loads(sys.stdin.buffer.read());"
        "sys.stdout.buffer.write(images.read('train', 5, 30).tobytes())"
    )
    out = subprocess.run([sys.executable, "-c", code], input=content, capture_output=True, check=True).stdout
    assert out == data.x_train[5:30].tobytes()


def test_writing_again_changes_nothing(written, tmp_path):
    data, store, images = written
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert write_prepared(data, store) == images
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before
    assert list(prepared_prefixes(store)) == [images.prefix]


def test_other_labels_share_the_images(written):
    data, store, images = written
    other = load_dataset(dataclasses.replace(CONFIG, labels="half"))
    second = write_prepared(other, store)
    assert second.prefix == images.prefix
    assert second.labels_key != images.labels_key
    np.testing.assert_array_equal(second.labels().y_train, other.y_train)
    np.testing.assert_array_equal(images.labels().y_train, data.y_train)


def damage(path, rng):
    content = bytearray(path.read_bytes())
    kind = rng.choice(["flip", "cut", "extend", "delete", "empty"])
    if kind == "flip":
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    elif kind == "cut":
        del content[rng.integers(len(content)) :]
    elif kind == "extend":
        content += b"x"
    elif kind == "delete":
        path.unlink()
        return kind
    else:
        content.clear()
    path.write_bytes(content)
    return kind


def test_all_damage_is_found_and_mended(written, tmp_path):
    data, store, images = written
    root = tmp_path / images.prefix
    rng = np.random.default_rng(0)
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        for _ in range(3):
            original = path.read_bytes()
            damage(path, rng)
            forget()
            relative = str(path.relative_to(tmp_path))
            found = verify_prepared(store, images.prefix)
            # zarr.json is JSON: a flipped bit may change no more than white space.
            # An absent object of labels is not known to be missing: labels are named by their hash alone.
            if path.name == "manifest.json" or "/c/" in relative:
                assert any(relative in line for line in found), (relative, found)
            if "/c/" in relative:
                with pytest.raises(CorruptionError, match=relative):
                    images.read(relative.split("/")[2], 0, len(getattr(data, f"x_{relative.split('/')[2]}")))
            if path.name == "manifest.json":
                with pytest.raises((CorruptionError, IncompleteError), match=relative):
                    images.read("train", 0, 1)
            if "/labels/" in relative:
                with pytest.raises((CorruptionError, IncompleteError), match="labels"):
                    images.labels()
            assert write_prepared(data, store) == images
            assert verify_prepared(store, images.prefix) == []
            if path.name != "zarr.json":
                assert path.read_bytes() == original
            forget()
            np.testing.assert_array_equal(images.read("train", 0, 50), data.x_train)


def test_swapped_chunks_are_found(written, tmp_path):
    data, store, images = written
    a, b = (tmp_path / images.prefix / f"train/c/{k}/0/0/0" for k in (1, 2))
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    assert len(verify_prepared(store, images.prefix)) == 2
    forget()
    with pytest.raises(CorruptionError, match="manifest"):
        images.read("train", 8, 9)
    write_prepared(data, store)
    np.testing.assert_array_equal(images.read("train", 0, 50), data.x_train)


def test_unfinished_writes_are_finished(written, tmp_path):
    data, store, images = written
    (tmp_path / images.prefix / "manifest.json").unlink()
    (tmp_path / images.prefix / "train/c/4/0/0/0").unlink()
    forget()
    with pytest.raises(IncompleteError, match="not written completely"):
        images.read("train", 0, 5)
    kept = (tmp_path / images.prefix / "train/c/3/0/0/0").stat().st_mtime_ns
    write_prepared(data, store)
    assert verify_prepared(store, images.prefix) == []
    assert (tmp_path / images.prefix / "train/c/3/0/0/0").stat().st_mtime_ns == kept


def test_what_was_committed_first_stays(written):
    data, store, images = written
    # Another machine's last bits: same fingerprint, values off by rounding.
    other = dataclasses.replace(data, x_train=np.nextafter(data.x_train, np.float32(9)))
    assert write_prepared(other, store) == images
    forget()
    np.testing.assert_array_equal(images.read("train", 0, 50), data.x_train)
    # A chunk mended with those bits is stated in the manifest, and a reader with the old manifest finds out.
    images.read("train", 0, 1)
    store.delete(f"{images.prefix}/train/c/2/0/0/0")
    stale = prepared._cached_manifest(images.url, images.prefix)
    write_prepared(other, store)
    assert verify_prepared(store, images.prefix) == []
    assert prepared._cached_manifest(images.url, images.prefix) != stale
    np.testing.assert_array_equal(images.read("train", 14, 21), other.x_train[14:21])


def test_another_data_set_under_the_same_prefix_is_refused(written):
    data, store, images = written
    collision = dataclasses.replace(data, fingerprint=data.fingerprint[:16] + "0" * 48)
    with pytest.raises(StoreError, match=data.fingerprint):
        write_prepared(collision, store)
    manifest = json.loads(store.get(f"{images.prefix}/manifest.json"))
    del manifest["sha256"]
    store.put(f"{images.prefix}/manifest.json", prepared_layout.seal({**manifest, "format": 99}), overwrite=True)
    with pytest.raises(StoreError, match="format 99"):
        write_prepared(data, store)


def _write(url):
    write_prepared(load_dataset(CONFIG), open_store(url))


def test_writers_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(str(tmp_path),)) for _ in range(3)]
    for w in writers:
        w.start()
    for w in writers:
        w.join()
        assert w.exitcode == 0
    data, store = load_dataset(CONFIG), open_store(str(tmp_path))
    (prefix,) = prepared_prefixes(store)
    assert verify_prepared(store, prefix) == []
    images = write_prepared(data, store)
    np.testing.assert_array_equal(images.read("test", 0, 17), data.x_test)


def test_the_cache_is_bounded():
    cache = prepared_layout.ChunkCache(100)
    for k in range(5):
        cache.put(("u", "k", k), np.zeros(5))
        cache.get(("u", "k", 0))
    assert cache.get(("u", "k", 0)) is not None
    assert cache.get(("u", "k", 4)) is not None
    assert sum(cache.get(("u", "k", k)) is not None for k in range(5)) == 2
    cache.put(("u", "k", 9), np.zeros(1000))  # larger than the limit: kept alone
    assert sum(cache.get(("u", "k", k)) is not None for k in range(10)) == 1


def test_absent_images(tmp_path):
    images = PreparedImages(str(tmp_path), "data/0-float32", "data/0-float32/labels/0.npz")
    with pytest.raises(IncompleteError, match="manifest"):
        images.shape("train")
    with pytest.raises(IncompleteError, match="labels"):
        images.labels()
    assert len(verify_prepared(open_store(str(tmp_path)), images.prefix)) == 1
