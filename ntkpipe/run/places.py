"""Where a run's store and files lie: a stored run means the same from every folder, and after it has moved with them.

`run.json` keeps every path of the configuration as it is on this machine, and beside it as it is seen from the run's folder. A
run that moved together with its store is known by the second, one that moved alone by the first: of two stores that are
there, the one counts that holds what the run's receipts name.

Runs of earlier versions have paths as they were typed, relative to the folder where they were started. That folder is the one
from which `run_dir` leads to the run, or else the present one.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ntkpipe.config import RunConfig
from ntkpipe.errors import ConfigError, StoreError
from ntkpipe.storage.store import ObjectStore, local_folder, open_store

STORE = "store.url"
PATHS = (
    STORE,
    "data.path",
    "data.test_path",
    "kernel.path",
    "kernel.weights",
    "kernel.train",
    "kernel.test",
    "kernel.test_diagonal",
    "predict.initial",
)
"""Settings that name a folder or a file, some of them by choice; `run_dir` is the run's own."""

_WORDS = {"predict.initial": ("zero", "network")}
"""What such a setting may be instead of a path."""

SOLVES = ("cholesky/", "uncertainty/", "krylov/", "eigh/", "cg/", "flow/", "spectrum/")
"""Where solvers keep what they have, in the store: tiles of factors, and checkpoints."""
# By these a folder is known as a store; a folder `data`, `gram` or `runs` may be anybody's.
_OURS = ("data/sources/", "data/given/", "tuning/", ".compiled/", ".probe/", *SOLVES)

Choices = Mapping[str, tuple[str, str]]
"""Where each path may be: if it moved together with the run's folder, and otherwise."""


def anchored(config: RunConfig) -> RunConfig:
    """The configuration with every path absolute, as it is seen from the present folder; of `run_dir` `~` alone is replaced."""
    found = {name: _absolute(name, value, os.getcwd()) for name, value in named(config)}
    return dataclasses.replace(with_paths(config, found), run_dir=os.path.expanduser(config.run_dir))


def named(config: RunConfig) -> Iterator[tuple[str, str]]:
    """The paths that a configuration has: setting and value."""
    for name in PATHS:
        group, _, field = name.partition(".")
        value = getattr(getattr(config, group), field)
        if isinstance(value, str) and value not in _WORDS.get(name, ()):
            yield name, value


def with_paths(config: RunConfig, paths: Mapping[str, str]) -> RunConfig:
    """The configuration with other paths."""
    groups: dict[str, Any] = {}
    for name, value in paths.items():
        group, _, field = name.partition(".")
        groups[group] = dataclasses.replace(groups.get(group, getattr(config, group)), **{field: value})
    return dataclasses.replace(config, **groups)


def beside(config: RunConfig, folder: Path) -> dict[str, str]:
    """The paths of an anchored configuration as they are seen from the run's folder; JSON-ready.

    Those of buckets, and those that share nothing with the folder but the root, are left out: they do not move with it.
    """
    here, found = os.path.realpath(folder), {}
    for name, value in named(config):
        path = local_folder(value) if name == STORE else value
        if path is not None and os.path.commonpath([here, there := os.path.realpath(path)]) != os.sep:
            found[name] = os.path.relpath(there, here)
    return found


def choices(config: RunConfig, seen: Mapping[str, str] | None, folder: Path) -> Choices:
    """Where the paths of a stored configuration may be now.

    Args:
        config: as stored.
        seen: what `beside` gave when it was stored; None of an earlier version.
        folder: where the run is now.
    """
    if seen is None:
        start = _start(config, folder)
        return {n: (_absolute(n, v, start), _absolute(n, v, os.getcwd())) for n, v in named(config)}
    here = os.path.realpath(folder)
    return {n: (os.path.normpath(os.path.join(here, seen[n])) if n in seen else v, v) for n, v in named(config)}


def chosen(found: Choices, store: str) -> dict[str, str]:
    """The paths to use, given that of the store: the others lie on its side if they are there, else on the other one.

    Args:
        found: of `choices`.
        store: its address.
    """
    together, otherwise = found[STORE]
    moved = store == together and together != otherwise
    paths = {STORE: store}
    for name, pair in found.items():
        if name != STORE:
            ordered = pair if moved else pair[::-1]
            paths[name] = next((path for path in ordered if os.path.exists(path)), ordered[0])
    return paths


def resolve_paths(
    config: RunConfig, seen: Mapping[str, str] | None, folder: Path, rank: Callable[[str], int]
) -> tuple[RunConfig, Choices]:
    """A stored configuration with its paths as they are now, and where else they may be.

    Args:
        config: as stored.
        seen: as of `choices`.
        folder: where the run is now.
        rank: how much speaks for the store at an address; 0 if there is none.
    """
    found = choices(config, seen, folder)
    together, otherwise = found[STORE]
    store = otherwise
    if together != otherwise:
        # Where there is nothing at both, the one that was meant when the run began.
        store = together if rank(together) >= max(rank(otherwise), 0 if seen is None else 1) else otherwise
    return with_paths(config, chosen(found, store)), found


def is_same_place(a: str, b: str) -> bool:
    """Whether two paths or URLs lead to the same place."""
    return a == b or ("://" not in a + b and os.path.realpath(a) == os.path.realpath(b))


def is_store(store: ObjectStore) -> bool:
    """Whether there is anything of ntkpipe's in it."""
    for folder in ("gram", "data"):
        if any(store.exists(f"{folder}/{name}/manifest.json") for name in store.folders(folder)):
            return True
    return any(next(iter(store.list(prefix)), None) is not None for prefix in _OURS)


def rank_of_any(url: str) -> int:
    """1 if there is a store at the address, else 0; of one that may not be read too."""
    try:
        return int(is_store(open_store(url)))
    except (ConfigError, StoreError):
        return 0


def _absolute(name: str, value: str, base: str) -> str:
    """A path as it is seen from the folder `base`; the URL of a bucket as it is."""
    path = local_folder(value) if name == STORE else os.path.expanduser(value)
    return value if path is None else os.path.abspath(os.path.join(base, path))


def _start(config: RunConfig, folder: Path) -> str:
    """The folder from which `run_dir` leads to the run's folder; the present one if there is none."""
    here, way = Path(os.path.abspath(folder)), Path(os.path.normpath(os.path.expanduser(config.run_dir)))
    k = len(here.parts) - len(way.parts)
    if not way.is_absolute() and ".." not in way.parts and here.parts[max(k, 0) :] == way.parts:
        return str(Path(*here.parts[:k]))
    return os.getcwd()
