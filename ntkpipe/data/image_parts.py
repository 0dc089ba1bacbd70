"""Folders of images that are called or divided otherwise than `train` and `test`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

VALIDATION = ("val", "valid", "validation")
"""What stands for `test` where there is none."""


def parts_of(folders: Iterable[str], *, divided: bool) -> tuple[str, ...]:
    """Which folders of the top hold images: `train` and `test` or what stands for it, or all (`.`).

    Args:
        folders: names of those at the top.
        divided: False if test images are to be drawn, and there need be no such folders.
    """
    there = set(folders)
    if not divided and "train" not in there:
        return (".",)
    validation = () if "test" in there or not divided else tuple(name for name in VALIDATION if name in there)[:1]
    return ("train", "test", *validation)


def arranged(names: Iterable[str], *, divided: bool) -> dict[str, str]:
    """The names of files with `train` and `test` in their places -> their own names.

    Args:
        names: relative, of all files.
        divided: False if test images are to be drawn from all that are found.
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
    """Folders at the top that hold everything, as zips often have one."""
    above = 0
    while paths and all(len(p.parts) > above + 2 for p in paths) and len({p.parts[above] for p in paths}) == 1:
        above += 1
    return above


def _with_test(path: PurePosixPath, roots: set[tuple[str, ...]]) -> PurePosixPath:
    for k, part in enumerate(path.parts[:-2]):
        if part in VALIDATION and path.parts[:k] in roots:
            return PurePosixPath(*path.parts[:k], "test", *path.parts[k + 1 :])
    return path
