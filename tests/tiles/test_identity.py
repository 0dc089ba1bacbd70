from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from ntkpipe.errors import ConfigError, CorruptionError, IdentityError
from ntkpipe.storage.local import LocalStore
from ntkpipe.tiles.identity import GramIdentity
from ntkpipe.tiles.record import seal, unseal
from ntkpipe.tiles.store import GramStore

OTHER = {
    "data": "other data",
    "architecture": "other arch",
    "formula_version": "2",
    "dtype": "float32",
    "stored_dtype": "float64",
    "edge": 5,
    "n_train": 11,
    "n_test": 6,
    "symmetry": "even",
}


def test_every_field_but_the_spec_makes_the_key(problem):
    keys = {problem.identity.key}
    for name, value in OTHER.items():
        keys.add(dataclasses.replace(problem.identity, **{name: value}).key)
    assert len(keys) == 1 + len(OTHER)
    assert OTHER.keys() | {"spec"} == {f.name for f in dataclasses.fields(GramIdentity)}
    same = dataclasses.replace(problem.identity, spec=None)
    assert same == problem.identity
    assert same.key == problem.identity.key


def test_the_key_is_the_same_in_every_process_and_version(problem):
    # Stored folders carry it: a change of this value orphans every existing Gram store.
    assert problem.identity.key == "312f545b59f20b53"


def test_a_store_without_symmetry_says_nothing_of_it(problem):
    assert "symmetry" not in problem.identity.to_dict()
    assert GramIdentity.from_dict(problem.identity.to_dict()) == problem.identity
    even = dataclasses.replace(problem.identity, symmetry="even")
    assert even.to_dict()["symmetry"] == "even"
    assert GramIdentity.from_dict(even.to_dict()) == even


@pytest.mark.parametrize("name", OTHER)
def test_a_named_store_of_another_identity_names_the_field(tmp_path, problem, name):
    objects = LocalStore(tmp_path)
    GramStore.create_or_open(objects, problem.identity, name="mine")
    other = dataclasses.replace(problem.identity, **{name: OTHER[name]})
    with pytest.raises(IdentityError) as caught:
        GramStore.create_or_open(objects, other, name="mine")
    text = str(caught.value)
    assert f"{name}: stored {getattr(problem.identity, name)!r}, required {OTHER[name]!r};" in text
    assert "store.name" in text
    assert not any(f"  {n}:" in text for n in OTHER if n != name)


def test_opening_again_finds_the_same_store(tmp_path, problem):
    objects = LocalStore(tmp_path)
    first = GramStore.create_or_open(objects, problem.identity)
    assert GramStore.create_or_open(objects, problem.identity) == first
    assert GramStore.open(objects, first.name) == first
    assert GramStore.open(objects, first.name).identity.spec == [{"op": "relu"}]
    other = dataclasses.replace(problem.identity, edge=7)
    assert GramStore.create_or_open(objects, other).name != first.name


def test_many_may_create_it_at_once(tmp_path, problem):
    objects = LocalStore(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: GramStore.create_or_open(objects, problem.identity), range(4)))
    assert len(set(map(hash, stores))) == 1
    problem.fill(stores[0])
    assert stores[1].matrix("ntk", "train").read(0, 0).shape == (4, 4)


def test_a_damaged_manifest_is_rewritten_where_the_folder_proves_the_identity(gram, problem):
    key = gram.layout.key("manifest.json")
    gram.objects.put(key, b"", overwrite=True)
    with pytest.raises(CorruptionError, match=r"manifest\.json is damaged.*ntkpipe clean"):
        GramStore.open(gram.objects, gram.name)
    assert GramStore.create_or_open(gram.objects, problem.identity) == gram
    assert GramStore.open(gram.objects, gram.name) == gram


def test_a_damaged_manifest_of_a_named_store_is_refused(tmp_path, problem):
    objects = LocalStore(tmp_path)
    gram = GramStore.create_or_open(objects, problem.identity, name="mine")
    objects.put(gram.layout.key("manifest.json"), b"{}", overwrite=True)
    with pytest.raises(CorruptionError, match="damaged"):
        GramStore.create_or_open(objects, problem.identity, name="mine")


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "a b", "a\n"])
def test_names_that_are_no_folder_are_refused(tmp_path, problem, name):
    with pytest.raises(ConfigError, match=r"store\.name"):
        GramStore.create_or_open(LocalStore(tmp_path), problem.identity, name=name)


@pytest.mark.parametrize(
    "change", [{"stored_dtype": "bfloat16"}, {"symmetry": "some"}, {"edge": 0}, {"n_train": 0}, {"n_test": -1}]
)
def test_impossible_identities_are_refused(problem, change):
    with pytest.raises(ConfigError):
        dataclasses.replace(problem.identity, **change)


def test_a_manifest_of_another_version_is_named(problem):
    with pytest.raises(IdentityError, match="colour"):
        GramIdentity.from_dict({**problem.identity.to_dict(), "colour": "red"})


def test_every_changed_byte_of_a_record_is_seen():
    data = seal({"a": 1.25, "b": [None, "é", {"c": True}]})
    assert unseal(data, "r") == {"a": 1.25, "b": [None, "é", {"c": True}]}
    for k in range(len(data)):
        for bit in (1, 32):
            changed = data[:k] + bytes([data[k] ^ bit]) + data[k + 1 :]
            with pytest.raises(CorruptionError, match="record r"):
                unseal(changed, "r")
        with pytest.raises(CorruptionError):
            unseal(data[:k], "r")
    assert json.loads(data)["a"] == 1.25
    with pytest.raises(CorruptionError):
        unseal(b"[1]", "r")
