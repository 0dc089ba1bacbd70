"""Finds the images of folders that have other names or divisions than `train` and `test`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

VALIDATION = ("val", "valid", "validation")
"""Names of folders that replace a missing `test`."""


def parts_of(folders: Iterable[str], *, divided: bool) -> tuple[str, ...]:
    """Return the top folders that hold images: `train` and `test` or its equivalent, or the whole source (`.`).

    Args:
        folders: names of the folders at the top.
        divided: False if test images are drawn, so that no folders `train` and `test` are needed.
    """
    there = set(folders)
    if not divided and "train" not in there:
        return (".",)
    validation = () if "test" in there or not divided else tuple(name for name in VALIDATION if name in there)[:1]
    return ("train", "test", *validation)


def arranged(names: Iterable[str], *, divided: bool) -> dict[str, str]:
    """Map names below `train` and `test` to the names of the files in their source.

    Args:
        names: relative names of all files.
        divided: False if test images are drawn from all images.
    """
    paths = [PurePosixPath(name) for name in names]
    roots: dict[str, set[tuple[str, ...]]] = {"train": set(), "test": set()}
    for path in paths:
        for k, part in enumerate(path.parts[:-2]):
            if part in roots:
                roots[part].add(path.parts[:k])
    if not divided and not roots["train"]:
        above = _shared([path for path in paths if len(path.parts) > 1])
        return {str(PurePosixPath("train", *path.parts[above:])): str(path) for path in paths}
    if roots["test"] or not divided:
        return {str(path): str(path) for path in paths}
    return {str(_with_test(path, roots["train"])): str(path) for path in paths}


def _shared(paths: list[PurePosixPath]) -> int:
    """Return how many nested folders at the top hold everything else, as in many zips."""
    above = 0
    while paths and all(len(p.parts) > above + 2 for p in paths) and len({p.parts[above] for p in paths}) == 1:
        above += 1
    return above


def _with_test(path: PurePosixPath, roots: set[tuple[str, ...]]) -> PurePosixPath:
    for k, part in enumerate(path.parts[:-2]):
        if part in VALIDATION and path.parts[:k] in roots:
            return PurePosixPath(*path.parts[:k], "test", *path.parts[k + 1 :])
    return path
