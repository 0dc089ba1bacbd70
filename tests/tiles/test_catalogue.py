from __future__ import annotations

import dataclasses
import os

import pytest

from ntkpipe.errors import ConfigError, HeldError
from ntkpipe.storage.store import MissingObjectError
from ntkpipe.tiles.catalogue import delete_gram_store, list_gram_stores, usage
from ntkpipe.tiles.store import GramStore


def bytes_below(path):
    return sum(os.path.getsize(os.path.join(d, f)) for d, _, names in os.walk(path) for f in names)


def test_every_store_is_listed_with_its_progress(full, problem):
    other = GramStore.create_or_open(full.objects, dataclasses.replace(problem.identity, edge=5), name="zz")
    other.write_tile("train", 0, 0, {k: v[:5, :5] for k, v in zip(("nngp", "ntk"), _squares(problem), strict=True)})
    full.objects.put("gram/yy/manifest.json", b"broken")
    infos = {info.name: info for info in list_gram_stores(full.objects)}
    assert list(infos) == sorted([full.name, "yy", "zz"])
    done = infos[full.name]
    assert (done.tiles_done, done.tiles_total) == (6 + 6, 6 + 6)
    assert done.identity == problem.identity
    assert done.nbytes == usage(full.objects, full.name) == bytes_below(full.where)
    assert done.last_used.startswith("20")
    assert (infos["zz"].tiles_done, infos["zz"].tiles_total) == (1, 3 + 2)
    assert infos["yy"].identity is None
    assert infos["yy"].last_used is None


def _squares(problem):
    return problem.arrays["nngp", "train"], problem.arrays["ntk", "train"]


def test_no_stores(gram):
    delete_gram_store(gram.objects, gram.name)
    assert list(list_gram_stores(gram.objects)) == []


def test_delete_frees_what_it_says_and_spares_the_others(full, problem):
    other = problem.fill(GramStore.create_or_open(full.objects, problem.identity, name="other"))
    with open(os.path.join(full.where, "tiles.zarr", "ntk", "train", "c", "0", "0.abc.partial"), "wb") as file:
        file.write(b"half")
    size = usage(full.objects, full.name)
    assert delete_gram_store(full.objects, full.name) == size
    assert not os.path.exists(full.where)
    assert [info.name for info in list_gram_stores(full.objects)] == ["other"]
    assert list(other.missing("train")) == []


def test_a_store_in_use_is_not_deleted(full):
    with full.lease("a run"), pytest.raises(HeldError, match="a run"):
        delete_gram_store(full.objects, full.name)
    assert list(full.missing("train")) == []


def test_deleting_what_is_not_there(full):
    with pytest.raises(MissingObjectError, match="no Gram store"):
        delete_gram_store(full.objects, "nowhere")
    with pytest.raises(ConfigError):
        delete_gram_store(full.objects, "../x")
