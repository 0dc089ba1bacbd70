from __future__ import annotations

import dataclasses
import itertools
import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import xarray
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ntkpipe.errors import ConfigError, CorruptionError, DataError, HeldError, IncompleteError
from ntkpipe.storage.local import LocalStore
from ntkpipe.storage.memory import MemoryStore
from ntkpipe.storage.store import MissingObjectError
from ntkpipe.tiles.audit import repair, verify
from ntkpipe.tiles.grid import TileGrid
from ntkpipe.tiles.matrix import TileMatrix
from ntkpipe.tiles.store import GramStore

BLOCKS = tuple(itertools.product(("nngp", "ntk"), ("train", "test")))


def path_of(gram, kernel, block, i, j=0):
    return os.path.join(gram.objects.url, gram.layout.chunk_key(kernel, block, i, j))


def flip(path, position):
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0x10]))


@settings(
    deadline=None,
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    n_train=st.integers(1, 12),
    n_test=st.integers(1, 12),
    edge=st.integers(1, 14),
    dtype=st.sampled_from(["float32", "float64"]),
    data=st.data(),
)
def test_every_value_comes_back_for_any_size(make, n_train, n_test, edge, dtype, data):
    problem = make(n_train, n_test, edge, dtype)
    objects = MemoryStore(os.urandom(8).hex())
    gram = problem.fill(GramStore.create_or_open(objects, problem.identity))
    rows, cols = data.draw(st.integers(1, n_train)), data.draw(st.integers(1, n_train))
    for kernel, block in BLOCKS:
        m, k = (rows, rows) if block == "train" else (data.draw(st.integers(1, n_test)), cols)
        for matrix in (gram.matrix(kernel, block, m, k), gram.matrix(kernel, block).leading(m, k)):
            assert isinstance(matrix, TileMatrix)
            for t in matrix.grid:
                tile = matrix.read(t.i, t.j)
                expected = problem.arrays[kernel, block][t.row_start : t.row_stop, t.col_start : t.col_stop]
                assert np.array_equal(tile, expected)
                assert tile.dtype == matrix.dtype == np.dtype(dtype)
                assert tile.flags.c_contiguous
    assert np.array_equal(gram.read_diagonal("train", "ntk", rows), problem.arrays["ntk", "diagonal/train"][:rows])
    assert np.array_equal(gram.read_diagonal("test", "nngp"), problem.arrays["nngp", "diagonal/test"])
    assert gram.read_diagonal("train", "ntk").dtype == np.float64


def test_zarr_reads_what_we_write(full, problem):
    group = zarr.open_group(f"{full.where}/tiles.zarr", mode="r")
    for kernel, block in BLOCKS:
        stored = group[f"{kernel}/{block}"][:]
        expected = problem.arrays[kernel, block]
        if block == "train":
            lower = np.zeros(expected.shape, bool)
            for t in full.grid("train"):
                lower[t.row_start : t.row_stop, t.col_start : t.col_stop] = True
            expected = np.where(lower, expected, np.nan)
        assert np.array_equal(stored, expected, equal_nan=True)
        assert np.array_equal(group[f"diagonal/{block}/{kernel}"][:], problem.arrays[kernel, f"diagonal/{block}"])
    assert {name for name, _ in group.members(max_depth=None)} == {
        *("nngp", "nngp/train", "nngp/test", "ntk", "ntk/train", "ntk/test", "diagonal", "diagonal/train"),
        *("diagonal/test", "diagonal/train/nngp", "diagonal/train/ntk", "diagonal/test/nngp", "diagonal/test/ntk"),
    }


def test_xarray_reads_what_we_write(full, problem):
    with xarray.open_zarr(f"{full.where}/tiles.zarr/ntk", consolidated=False) as data:
        assert data["test"].dims == ("test_image", "train_image")
        assert np.array_equal(data["test"].values, problem.arrays["ntk", "test"])


def test_zarr_sees_a_flipped_bit_in_our_chunk(full):
    flip(path_of(full, "ntk", "test", 0, 1), 7)
    array = zarr.open_array(f"{full.where}/tiles.zarr/ntk/test", mode="r")
    with pytest.raises(ValueError, match="checksum"):
        array[:]


def test_a_chunk_is_what_zarr_itself_would_write(full, problem, tmp_path):
    group = zarr.open_group(f"{full.where}/tiles.zarr", mode="r")
    ours = group["ntk/test"]
    theirs = zarr.create_array(tmp_path / "theirs", overwrite=True, **_like(ours))
    theirs[:] = problem.arrays["ntk", "test"]
    # Tiles inside the matrix: at ragged edges Zarr leaves what the padding held, we write NaN.
    with open(path_of(full, "ntk", "test", 0, 1), "rb") as a, open(tmp_path / "theirs/c/0/1", "rb") as b:
        assert a.read() == b.read()


def _like(array):
    meta = array.metadata
    return {
        "shape": array.shape,
        "chunks": array.chunks,
        "dtype": array.dtype,
        "fill_value": meta.fill_value,
        "filters": None,
        "serializer": meta.codecs[0],
        "compressors": list(meta.codecs[1:]),
    }


def test_handles_are_small_and_work_in_another_process(full, problem, tmp_path):
    matrix = full.matrix("ntk", "train", 7)
    assert len(pickle.dumps(matrix)) < 1500
    (tmp_path / "matrix.bin").write_bytes(pickle.dumps(matrix))
    code = (
        "import pickle, sys; m = pickle.load(open(sys.argv[1], 'rb')); print(float(m.read(1, 0).sum()));"
        "print([x for x in ('zarr', 'jax', 'ray') if x in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "matrix.bin")], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [str(float(problem.arrays["ntk", "train"][4:7, :4].sum())), "[]"]


def test_missing_follows_the_receipts(gram, problem):
    assert [(t.i, t.j) for t in gram.missing("train")] == [(t.i, t.j) for t in gram.grid("train")]
    gram.write_tile("train", 1, 0, problem.tile("train", 1, 0))
    assert (1, 0) not in [(t.i, t.j) for t in gram.missing("train")]
    part = list(gram.missing("train", gram.grid("train").leading(7)))
    assert [(t.i, t.j) for t in part] == [(0, 0), (1, 1)]
    assert part[1].shape == (4, 4)  # whole, though the leading block ends inside it
    assert gram.missing_diagonal("train") == [0, 1, 2]
    gram.write_diagonal("train", 1, problem.diagonal("train", 1))
    assert gram.missing_diagonal("train") == [0, 2]
    assert gram.missing_diagonal("train", 4) == [0]


def test_a_chunk_without_receipt_does_not_count(full):
    full.objects.delete(full.layout.receipt_key("train", 1, 0))
    fresh = GramStore.open(full.objects, full.name)
    assert [(t.i, t.j) for t in fresh.missing("train")] == [(1, 0)]


def test_reading_what_is_not_computed_says_what_to_run(gram):
    with pytest.raises(IncompleteError, match=r"tile \(1, 0\) of ntk/train .*ntkpipe gram"):
        gram.matrix("ntk", "train").read(1, 0)
    with pytest.raises(IncompleteError, match="ntkpipe gram"):
        gram.read_diagonal("test", "ntk")
    with pytest.raises(IndexError):
        gram.matrix("ntk", "train").read(0, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_stored(gram, problem, bad):
    tile = {k: v.copy() for k, v in problem.tile("train", 2, 0).items()}
    tile["ntk"][1, :] = bad
    with pytest.raises(DataError, match=r"tile \(2, 0\) of ntk/train holds 4 non-finite .* rows 9 .*drop_invalid"):
        gram.write_tile("train", 2, 0, tile)
    tile = {k: v.copy() for k, v in problem.tile("test", 0, 1).items()}
    tile["nngp"][:, 2:] = bad
    with pytest.raises(DataError, match=r"holds 8 non-finite values\. Input rows 6-7 \(2 training"):
        gram.write_tile("test", 0, 1, tile)
    assert not list(gram.objects.list(gram.layout.key("tiles.zarr/ntk/train/c/")))
    assert not list(gram.objects.list(gram.layout.key("tiles.zarr/nngp/test/c/")))


def test_an_overflow_of_the_stored_dtype_is_not_stored(gram, problem):
    tile = {k: v.astype(np.float64) for k, v in problem.tile("train", 1, 0).items()}
    tile["ntk"][0, 0] = 1e39
    with pytest.raises(DataError, match=r"holds 1 non-finite .*kernel\.dtype=float64"):
        gram.write_tile("train", 1, 0, tile)


def test_wrong_shapes_and_kernels_are_refused(gram, problem):
    tile = problem.tile("train", 1, 0)
    with pytest.raises(ValueError, match=r"has shape \(4, 4\), got \(3, 4\)"):
        gram.write_tile("train", 1, 0, {**tile, "ntk": tile["ntk"][:3]})
    with pytest.raises(ValueError, match="kernels nngp, ntk"):
        gram.write_tile("train", 1, 0, {"ntk": tile["ntk"]})
    with pytest.raises(ConfigError, match="no block"):
        gram.grid("validation")
    with pytest.raises(ConfigError, match="not one of"):
        gram.matrix("linear", "train")


def test_any_memory_order_and_dtype_is_stored_right(gram, problem):
    tile = problem.tile("train", 1, 0)
    gram.write_tile("train", 1, 0, {k: np.asfortranarray(v.astype(np.float64)) for k, v in tile.items()})
    assert np.array_equal(gram.matrix("ntk", "train").read(1, 0), tile["ntk"])


def test_the_second_writer_adopts_the_first_ones_values(gram, problem):
    tile = problem.tile("train", 1, 0)
    first = gram.write_tile("train", 1, 0, tile, seconds=1.0)
    nudged = {k: v * np.float32(1 + 1e-6) for k, v in tile.items()}
    assert gram.write_tile("train", 1, 0, nudged, seconds=2.0) == first
    assert np.array_equal(gram.matrix("ntk", "train").read(1, 0), tile["ntk"])


def test_a_writer_that_died_before_its_receipt_is_adopted(gram, problem):
    tile = problem.tile("train", 1, 0)
    first = gram.write_tile("train", 1, 0, tile)
    gram.objects.delete(gram.layout.receipt_key("train", 1, 0))
    gram.objects.delete(gram.layout.chunk_key("ntk", "train", 1, 0))
    nudged = {k: v * np.float32(1 + 1e-6) for k, v in tile.items()}
    receipt = gram.write_tile("train", 1, 0, nudged)
    assert receipt.crc32c["nngp"] == first.crc32c["nngp"]  # still the dead writer's
    assert receipt.crc32c["ntk"] != first.crc32c["ntk"]
    assert np.array_equal(gram.matrix("nngp", "train").read(1, 0), tile["nngp"])
    assert np.array_equal(gram.matrix("ntk", "train").read(1, 0), nudged["ntk"])


@pytest.mark.parametrize("damage", ["flip", "cut", "foreign", "empty"])
@pytest.mark.parametrize("receipt_left", [True, False])
def test_writing_over_damage_repairs_it(gram, problem, damage, receipt_left):
    tile = problem.tile("train", 1, 0)
    gram.write_tile("train", 1, 0, tile)
    gram.write_tile("train", 0, 0, problem.tile("train", 0, 0))
    path = path_of(gram, "ntk", "train", 1, 0)
    if damage == "flip":
        flip(path, 3)
    elif damage == "foreign":  # intact, but another tile's
        with open(path_of(gram, "ntk", "train", 0, 0), "rb") as source, open(path, "wb") as target:
            target.write(source.read())
    else:
        os.truncate(path, 0 if damage == "empty" else 10)
    if not receipt_left:
        gram.objects.delete(gram.layout.receipt_key("train", 1, 0))
    gram.write_tile("train", 1, 0, tile)
    assert np.array_equal(gram.matrix("ntk", "train").read(1, 0), tile["ntk"])


def test_a_receipt_that_contradicts_its_tile_is_replaced(gram, problem):
    tile = problem.tile("train", 1, 0)
    gram.write_tile("train", 1, 0, tile)
    # A zombie of an older run wrote its receipt after the tile was discarded and its chunks were gone.
    for kernel in ("nngp", "ntk"):
        gram.objects.delete(gram.layout.chunk_key(kernel, "train", 1, 0))
    nudged = {k: v * np.float32(1 + 1e-6) for k, v in tile.items()}
    gram.write_tile("train", 1, 0, nudged)
    assert np.array_equal(gram.matrix("ntk", "train").read(1, 0), nudged["ntk"])


def test_many_writers_of_one_tile_leave_one_readable_tile(gram, problem):
    tile = problem.tile("train", 1, 0)

    def write(k):
        return gram.write_tile("train", 1, 0, {n: v * np.float32(1 + 1e-7 * k) for n, v in tile.items()})

    with ThreadPoolExecutor(8) as pool:
        receipts = list(pool.map(write, range(16)))
    stored = gram.receipt("train", 1, 0)
    assert all(r.crc32c == stored.crc32c for r in receipts)
    for kernel in ("nngp", "ntk"):
        np.testing.assert_allclose(gram.matrix(kernel, "train").read(1, 0), tile[kernel], rtol=1e-5)


def test_swapped_tiles_are_seen_though_each_is_intact(full):
    a, b = path_of(full, "ntk", "train", 1, 0), path_of(full, "ntk", "train", 2, 1)
    shapes = [full.matrix("ntk", "train").read(*t).shape for t in ((1, 0), (2, 1))]
    assert shapes == [(4, 4), (2, 4)]
    os.rename(a, a + "x"), os.rename(b, a), os.rename(a + "x", b)
    for address in ((1, 0), (2, 1)):
        with pytest.raises(CorruptionError, match="receipt has another checksum"):
            full.matrix("ntk", "train").read(*address)


def test_swapped_receipts_are_seen_as_well(full):
    keys = [full.layout.receipt_key("train", *t) for t in ((1, 0), (1, 1))]
    data = [full.objects.get(k) for k in keys]
    for key, other in zip(keys, reversed(data), strict=True):
        full.objects.put(key, other, overwrite=True)
    with pytest.raises(CorruptionError, match="belongs to another tile"):
        full.receipt("train", 1, 0)


def test_a_tile_computed_anew_elsewhere_is_read_though_we_knew_the_old_one(full, problem):
    matrix = full.matrix("ntk", "train")
    matrix.read(1, 0)
    code = (
        "import pickle, sys\n"
        "gram, tile = pickle.load(open(sys.argv[1], 'rb'))\n"
        "gram.discard('train', 1, 0); gram.write_tile('train', 1, 0, tile)"
    )
    nudged = {k: v * np.float32(1 + 1e-6) for k, v in problem.tile("train", 1, 0).items()}
    path = f"{full.objects.url}/job.bin"
    with open(path, "wb") as file:
        pickle.dump((full, nudged), file)
    subprocess.run([sys.executable, "-c", code, path], check=True)
    assert np.array_equal(matrix.read(1, 0), nudged["ntk"])


def test_discard_forgets_one_tile(full):
    full.discard("train", 1, 0)
    full.discard("train", 1, 0)
    assert [(t.i, t.j) for t in full.missing("train")] == [(1, 0)]
    with pytest.raises(IncompleteError):
        full.matrix("ntk", "train").read(1, 0)
    full.discard("diagonal/test", 1, 0)
    assert full.missing_diagonal("test") == [1]


def test_a_store_without_test_images(make, tmp_path):
    problem = make(n_test=0)
    gram = problem.fill(GramStore.create_or_open(LocalStore(tmp_path), problem.identity))
    assert gram.blocks == ("train",)
    assert np.array_equal(gram.matrix("ntk", "train").read(0, 0), problem.arrays["ntk", "train"][:4, :4])
    with pytest.raises(ConfigError, match="no block 'test'"):
        gram.matrix("ntk", "test")


def test_a_small_block_costs_no_padding(make, tmp_path):
    problem = make(n_train=20, n_test=3, edge=16)
    gram = problem.fill(GramStore.create_or_open(LocalStore(tmp_path), problem.identity))
    assert os.path.getsize(path_of(gram, "ntk", "test", 0, 1)) == 3 * 16 * 4 + 4
    assert os.path.getsize(path_of(gram, "ntk", "diagonal/test", 0)) == 3 * 8 + 4


def test_two_writers_at_once_are_told(gram):
    with gram.lease("ntkpipe gram run_dir=runs/a"), pytest.raises(HeldError, match="runs/a"), gram.lease("b"):
        pass


KEEP_WRITING = """
import pickle, sys
with open(sys.argv[1], "rb") as file:
    gram, tiles = pickle.load(file)
print("ready", flush=True)
for (block, i, j), tile in tiles.items():
    gram.write_tile(block, i, j, tile)
"""


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.01])
def test_a_killed_writer_leaves_only_tiles_that_can_be_trusted(make, tmp_path, delay):
    problem = make(n_train=1200, n_test=1, edge=200)
    gram = GramStore.create_or_open(LocalStore(tmp_path), problem.identity)
    tiles = {("train", t.i, t.j): problem.tile("train", t.i, t.j) for t in gram.grid("train")}
    (tmp_path / "job.bin").write_bytes(pickle.dumps((gram, tiles)))
    with subprocess.Popen(
        [sys.executable, "-c", KEEP_WRITING, str(tmp_path / "job.bin")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(delay)
        process.kill()
    matrix = gram.matrix("ntk", "train")
    missing = {(t.i, t.j) for t in gram.missing("train")}
    for t in gram.grid("train"):
        if (t.i, t.j) not in missing:
            assert np.array_equal(matrix.read(t.i, t.j), tiles["train", t.i, t.j]["ntk"])
    for i, j in missing:
        gram.write_tile("train", i, j, tiles["train", i, j])
    assert list(gram.missing("train")) == []
    assert all(np.array_equal(matrix.read(i, j), t["ntk"]) for (_, i, j), t in tiles.items())


def test_listing_is_one_look_however_many_receipts(problem, tmp_path, monkeypatch):
    identity = dataclasses.replace(problem.identity, n_train=20_000, edge=100)
    gram = GramStore.create_or_open(LocalStore(tmp_path), identity)
    folder = tmp_path / gram.layout.key("receipts/train")
    folder.mkdir(parents=True)
    for t in itertools.islice(gram.grid("train"), 5000):
        (folder / f"{t.i}.{t.j}.json").touch()
    monkeypatch.setattr(LocalStore, "exists", None)  # one for each tile of the grid would be 20,100 calls
    monkeypatch.setattr(LocalStore, "get", None)
    missing = gram.missing("train")
    first = next(missing)
    assert first == list(itertools.islice(gram.grid("train"), 5001))[-1]
    assert 1 + sum(1 for _ in missing) == len(gram.grid("train")) - 5000


def test_opening_what_is_not_there(tmp_path):
    with pytest.raises(MissingObjectError, match="nowhere"):
        GramStore.open(LocalStore(tmp_path), "nowhere")


def test_the_grid_of_a_subset_shares_tiles_with_the_whole(full, problem):
    subset = full.matrix("ntk", "train", 6)
    assert subset.grid == TileGrid(6, 6, 4, symmetric=True)
    assert np.array_equal(subset.read(1, 1), problem.arrays["ntk", "train"][4:6, 4:6])


def test_even_and_odd_parts_keep_the_diagonal_of_the_kernel_beside_their_own(problem, tmp_path):
    identity = dataclasses.replace(problem.identity, symmetry="even")
    gram = GramStore.create_or_open(LocalStore(tmp_path), identity)
    plain = {"plain_nngp": np.arange(4.0), "plain_ntk": np.arange(4.0) + 10}
    with pytest.raises(ValueError, match="plain_nngp"):
        gram.write_diagonal("train", 0, problem.diagonal("train", 0))
    gram.write_diagonal("train", 0, problem.diagonal("train", 0) | plain)
    gram.write_tile("train", 0, 0, problem.tile("train", 0, 0))
    np.testing.assert_array_equal(gram.read_diagonal("train", "ntk", 4, plain=True), plain["plain_ntk"])
    np.testing.assert_array_equal(gram.read_diagonal("train", "ntk", 4), problem.arrays["ntk", "diagonal/train"][:4])
    found = zarr.open_group(os.path.join(gram.where, "tiles.zarr"), mode="r")
    np.testing.assert_array_equal(found["diagonal/train/plain_ntk"][:4], plain["plain_ntk"])
    assert "flipped" in found.attrs["symmetry"]
    assert list(verify(gram)) == []
    flip(path_of(gram, "plain_ntk", "diagonal/train", 0), 3)
    (found,) = verify(gram)
    assert (found.label, found.i) == ("diagonal/train", 0)
    assert repair(gram, [found]) == [("diagonal/train", 0, 0)]
    assert gram.missing_diagonal("train", 4) == [0]
    assert list(verify(gram)) == []


def test_without_symmetry_the_plain_diagonal_is_the_diagonal(full, problem):
    np.testing.assert_array_equal(
        full.read_diagonal("test", "nngp", plain=True), problem.arrays["nngp", "diagonal/test"]
    )
