"""Locations of a run's store and files.

A stored run works from every working directory, and after it has moved with its files. `run.json` keeps every path of
the configuration both as an absolute path and relative to the run's folder. The relative path works if the run moved
together with its store, the absolute one if the run moved alone. If both stores exist, the one that holds the objects
named in the run's receipts is used.

Runs of earlier versions have paths as the user typed them, relative to the folder where they were started. That folder
is the one from which `run_dir` leads to the run, or else the working directory.
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
"""Settings that may name a folder or a file; `run_dir` is the run's own folder."""

_WORDS = {"predict.initial": ("zero", "network")}
"""Values of these settings that are not paths."""

SOLVES = ("cholesky/", "uncertainty/", "krylov/", "eigh/", "cg/", "flow/", "spectrum/", "refine/")
"""Folders of solver states in the store: tiles of factors, and checkpoints."""
# These prefixes identify a store. Folders named `data`, `gram` or `runs` may belong to other programs.
_OURS = ("data/sources/", "data/given/", "tuning/", ".compiled/", ".probe/", *SOLVES)

Choices = Mapping[str, tuple[str, str]]
"""Both candidates of each path: moved together with the run's folder, or not."""


def anchored(config: RunConfig) -> RunConfig:
    """Return the configuration with absolute paths, resolved from the working directory.

    In `run_dir`, only `~` is expanded.
    """
    found = {name: _absolute(name, value, os.getcwd()) for name, value in named(config)}
    return dataclasses.replace(with_paths(config, found), run_dir=os.path.expanduser(config.run_dir))


def named(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Yield the settings of a configuration that are paths, with their values."""
    for name in PATHS:
        group, _, field = name.partition(".")
        value = getattr(getattr(config, group), field)
        if isinstance(value, str) and value not in _WORDS.get(name, ()):
            yield name, value


def with_paths(config: RunConfig, paths: Mapping[str, str]) -> RunConfig:
    """Return the configuration with other paths."""
    groups: dict[str, Any] = {}
    for name, value in paths.items():
        group, _, field = name.partition(".")
        groups[group] = dataclasses.replace(groups.get(group, getattr(config, group)), **{field: value})
    return dataclasses.replace(config, **groups)


def beside(config: RunConfig, folder: Path) -> dict[str, str]:
    """Return the paths of an anchored configuration relative to the run's folder, JSON-ready.

    Buckets, and paths that share only the root with the folder, are left out because they do not move with it.
    """
    here, found = os.path.realpath(folder), {}
    for name, value in named(config):
        path = local_folder(value) if name == STORE else value
        if path is not None and os.path.commonpath([here, there := os.path.realpath(path)]) != os.sep:
            found[name] = os.path.relpath(there, here)
    return found


def choices(config: RunConfig, seen: Mapping[str, str] | None, folder: Path) -> Choices:
    """Return the candidates for the current paths of a stored configuration.

    Args:
        config: the stored configuration.
        seen: the result of `beside` when the configuration was stored; None for earlier versions.
        folder: the current folder of the run.
    """
    if seen is None:
        start = _start(config, folder)
        return {n: (_absolute(n, v, start), _absolute(n, v, os.getcwd())) for n, v in named(config)}
    here = os.path.realpath(folder)
    return {n: (os.path.normpath(os.path.join(here, seen[n])) if n in seen else v, v) for n, v in named(config)}


def chosen(found: Choices, store: str) -> dict[str, str]:
    """Return the paths to use with a given store.

    Each other path uses the same candidate as the store if that exists, and otherwise the other candidate.

    Args:
        found: result of `choices`.
        store: URL of the store.
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
    """Return a stored configuration with its current paths, and all candidates.

    Args:
        config: the stored configuration.
        seen: see `choices`.
        folder: the current folder of the run.
        rank: rates how well the store at a URL fits the run; 0 if there is no store.
    """
    found = choices(config, seen, folder)
    together, otherwise = found[STORE]
    store = otherwise
    if together != otherwise:
        # If neither store exists, take the one that was used when the run began.
        store = together if rank(together) >= max(rank(otherwise), 0 if seen is None else 1) else otherwise
    return with_paths(config, chosen(found, store)), found


def is_same_place(a: str, b: str) -> bool:
    """Return whether two paths or URLs lead to the same place."""
    return a == b or ("://" not in a + b and os.path.realpath(a) == os.path.realpath(b))


def is_store(store: ObjectStore) -> bool:
    """Return whether a store holds any object of ntkpipe."""
    for folder in ("gram", "data"):
        if any(store.exists(f"{folder}/{name}/manifest.json") for name in store.folders(folder)):
            return True
    return any(next(iter(store.list(prefix)), None) is not None for prefix in _OURS)


def rank_of_any(url: str) -> int:
    """Return 1 if there is a store at the URL, and 0 if there is none or it cannot be read."""
    try:
        return int(is_store(open_store(url)))
    except (ConfigError, StoreError):
        return 0


def _absolute(name: str, value: str, base: str) -> str:
    """Return the absolute path of a path relative to `base`; the URL of a bucket is unchanged."""
    path = local_folder(value) if name == STORE else os.path.expanduser(value)
    return value if path is None else os.path.abspath(os.path.join(base, path))


def _start(config: RunConfig, folder: Path) -> str:
    """Return the folder from which `run_dir` leads to the run's folder, or the working directory if there is none."""
    here, way = Path(os.path.abspath(folder)), Path(os.path.normpath(os.path.expanduser(config.run_dir)))
    k = len(here.parts) - len(way.parts)
    if not way.is_absolute() and ".." not in way.parts and here.parts[max(k, 0) :] == way.parts:
        return str(Path(*here.parts[:k]))
    return os.getcwd()
