"""Reads image files sorted into `train/<class>/*` and `test/<class>/*`, in a folder or a zip."""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from ntkpipe.config import DataConfig
from ntkpipe.data.image_parts import arranged, parts_of
from ntkpipe.data.npz import split
from ntkpipe.data.raw import RawImages
from ntkpipe.errors import DataError
from ntkpipe.extras import require

# A damaged file with one of these endings is an error. Any other file is a picture if Pillow can open it.
SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}
)
# A limit above any real image file. It is needed because a zip may declare any size.
_FILE_BYTES = 256 << 20
# Files that file managers create. They are ignored without a note.
_LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})


class _TooLargeError(DataError):
    """A file that is too large for a picture."""


@dataclass(frozen=True)
class _Source:
    """Relative names of all files and folders, and how to read a file.

    Args:
        what: path of the source, for messages.
        names: names of all files.
        folders: names of all folders, if known.
        read: returns the content of a file, given its name.
    """

    what: str
    names: tuple[str, ...]
    folders: tuple[str, ...]
    read: Callable[[str], bytes]

    @cached_property
    def paths(self) -> dict[str, PurePosixPath]:
        """The paths of all files by their names. Many parts of the check need them, and each takes 10 us to make."""
        return {name: PurePosixPath(name) for name in self.names}


def load(config: DataConfig) -> RawImages:
    """Load all images of a folder or zip.

    If there is no folder `test`, a folder `val`, `valid` or `validation` replaces it. With `config.test_fraction`, this
    share of `train` is drawn as test set, or of all images if they are not divided. Classes are the sorted folder names
    of `train`. Within a class, including its sub-folders, files are ordered by name, and numbers in names by value.

    All files that Pillow reads as pictures are used. Hidden files are ignored, and the notes name other files. Pictures
    are rotated by their EXIF orientation. With `config.image_size` images are resized (bicubic).

    Returns:
        Images `(n, h, w, 3)` uint8, or `(n, h, w, 1)` if every image is gray, and labels `(n,)` int64.

    Raises:
        DataError: if the layout differs, a class has no picture, a file is damaged, or sizes differ. The text names the
            file.
        MissingExtraError: if Pillow is not installed.
    """
    require("PIL", "data=image_folder")
    path = Path(str(config.path)).expanduser()
    if path.is_dir():
        files, folders = _walk(path, divided=config.test_fraction is None)
        return _load(_Source(str(path), files, folders, lambda name: _read_file(path / name)), config)
    if not path.is_file():
        raise DataError(
            f"data.path={path} is neither a folder nor a zip file: give one with train/<class>/* and test/<class>/*"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            infos = {i.filename: i for i in archive.infolist() if not i.is_dir()}
            folders = tuple(i.filename.rstrip("/") for i in archive.infolist() if i.is_dir())
            return _load(
                _Source(str(path), tuple(infos), folders, lambda name: _read_member(archive, infos[name])), config
            )
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        # The zip reader raises RuntimeError for an encrypted member.
        raise DataError(f"{path} cannot be read as a zip of images ({error}): make the archive again") from error


def _walk(root: Path, *, divided: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the files and folders below `train` and `test` (or their equivalents), and the folders beside these.

    Links are followed once.
    """
    files: list[str] = []
    folders = [one.name for one in root.iterdir() if one.is_dir()]
    seen: set[str] = set()
    for part in parts_of(folders, divided=divided):
        for folder, inside, names in os.walk(root / part, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:  # this is a link to a folder that was read before
                inside.clear()
                continue
            seen.add(real)
            relative = PurePosixPath(Path(folder).relative_to(root))
            files += [str(relative / name) for name in names]
            folders += [str(relative / name) for name in inside]
    return tuple(files), tuple(folders)


def _read_file(path: Path) -> bytes:
    try:
        if path.stat().st_size > _FILE_BYTES:
            raise _TooLargeError(
                f"{path} has more than {_FILE_BYTES >> 20} MB, which is too large for an image: remove it"
            )
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check its permissions") from error


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.file_size > _FILE_BYTES:
        raise _TooLargeError(
            f"{info.filename} unpacks to {info.file_size >> 20} MB, which is too large for an image: remove it"
        )
    try:
        return archive.read(info)
    except (zlib.error, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{info.filename} in {archive.filename} is damaged ({error}): make the archive again"
        ) from error


def natural_key(name: str) -> tuple[list[int | str], str]:
    """Return a sort key that puts `2.png` before `10.png`. The order is total, because the name itself breaks ties."""
    return [int(t) if i % 2 else t for i, t in enumerate(re.split(r"([0-9]+)", name))], name


@dataclass(frozen=True)
class _Part:
    """Pictures of `train` or `test`: names by class, other files, and every class folder."""

    pictures: dict[str, list[str]]
    others: list[str]
    classes: set[str]


def _load(source: _Source, config: DataConfig) -> RawImages:
    from ntkpipe.data.image_decoding import decode_all

    divided = config.test_fraction is None
    source = _arranged(source, divided=divided)
    root = _root(source)
    parts = {part: _part(source, (*root, part)) for part in ("train", "test")}
    if not divided and parts["test"].pictures:
        raise DataError(
            f"data.test_fraction={config.test_fraction:g}: {source.what} already has test images. Leave "
            "data.test_fraction out"
        )
    for part, found in parts.items():
        if not found.pictures and (divided or part == "train"):
            raise DataError(
                f"{source.what} holds no images under {part}/<class>/: sort them into train/<class>/* and test/<class>/*, or set "
                "data.test_fraction=0.2 to have test images drawn from <class>/*" + _left_out(found.others)
            )
    classes = _classes(source, parts["train"])
    for name, names in parts["test"].pictures.items():
        if name not in classes:
            raise DataError(
                f"{names[0]} in {source.what} belongs to a class that train/ does not have: add training images or "
                "remove it"
            )
    train, y_train = _ordered(source, parts["train"], classes, len(root) + 2)
    test, y_test = _ordered(source, parts["test"], classes, len(root) + 2)
    x, changed = decode_all(source.read, train + test, config.image_size, source.what)
    notes = [_left_out(parts["train"].others + parts["test"].others), _beside(source, root)]
    notes += [f"{len(names)} pictures {what} ({_few(names)})" for what, names in sorted(changed.items())]
    notes = [note.removeprefix(". ") for note in notes if note]
    if not divided:
        return split(RawImages(x, y_train, x[:0], None, tuple(classes), notes=tuple(notes)), config)
    return RawImages(
        x[: len(train)],
        y_train,
        x[len(train) :],
        y_test,
        tuple(classes),
        notes=tuple(notes),
    )


def _arranged(source: _Source, *, divided: bool) -> _Source:
    """Return the source with its images under `train` and `test`."""
    own = arranged(source.names, divided=divided)
    if all(name == there for name, there in own.items()):
        return source
    inner = {PurePosixPath(name.rpartition("/")[0]) for name in own}
    folders = {str(folder) for one in inner for folder in (one, *one.parents)} - {"."}

    def read(name: str) -> bytes:
        return source.read(own.get(name, name))

    return replace(source, names=tuple(own), folders=tuple(sorted(folders)), read=read)


def _hidden(path: PurePosixPath) -> bool:
    return any(part.startswith(".") or part.lower() in _LITTER for part in path.parts)


def _root(source: _Source) -> tuple[str, ...]:
    """Return the folder that holds `train` and `test`: the top, or a folder below it, as zips often have."""
    found: dict[str, set[tuple[str, ...]]] = {"train": set(), "test": set()}
    for path in source.paths.values():
        for k, part in enumerate(path.parts[:-2]):
            if part in found and not _hidden(path):
                found[part].add(path.parts[:k])
    both = found["train"] & found["test"]
    # A class may have a sub-folder called `train` or `test`, which is not the root of a data set.
    roots = [r for r in both if not any(r[: len(o) + 1] in ((*o, "train"), (*o, "test")) for o in both)]
    if len(roots) > 1:
        listed = ", ".join(sorted("/".join(r) or "." for r in roots))
        raise DataError(f"{source.what} holds several data sets ({listed}): keep one train/ and one test/")
    return roots[0] if roots else min(found["train"] | found["test"], key=len, default=())


def _part(source: _Source, above: tuple[str, ...]) -> _Part:
    depth = len(above)
    made = _Part({}, [], set())
    for name in source.folders:
        path = PurePosixPath(name)
        if len(path.parts) == depth + 1 and path.parts[:depth] == above and not _hidden(path):
            made.classes.add(path.name)
    for name, path in source.paths.items():
        if path.parts[:depth] != above or _hidden(path):
            continue
        if len(path.parts) > depth + 1:
            made.classes.add(path.parts[depth])
        if len(path.parts) > depth + 1 and (path.suffix.lower() in SUFFIXES or _is_picture(source, name)):
            made.pictures.setdefault(path.parts[depth], []).append(name)
        else:
            made.others.append(name)
    return made


def _is_picture(source: _Source, name: str) -> bool:
    from ntkpipe.data.image_decoding import is_picture

    try:
        return is_picture(source.read(name))
    except _TooLargeError:
        return False


def _classes(source: _Source, train: _Part) -> list[str]:
    """Return the sorted classes of `train`. Each must have pictures, and names must differ in more than case."""
    for name in sorted(train.classes - train.pictures.keys()):
        inside = [other for other in train.others if f"/{name}/" in f"/{other}"]
        raise DataError(
            f"class {name!r} of {source.what} has no readable picture under train/{_left_out(inside)}. Convert its "
            "files to PNG or JPEG, or remove the folder"
        )
    folded: dict[str, str] = {}
    for name in sorted(train.pictures):
        first = folded.setdefault(name.strip().casefold(), name)
        if first != name:
            raise DataError(
                f"{source.what} has classes {first!r} and {name!r}, which differ only in case or spaces: merge or "
                "rename them"
            )
    return sorted(train.pictures)


def _ordered(source: _Source, part: _Part, classes: list[str], depth: int) -> tuple[list[str], np.ndarray]:
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        inside = part.pictures.get(name, [])
        names += sorted(inside, key=lambda n: (natural_key("/".join(source.paths[n].parts[depth:])), n))
        labels += [label] * len(inside)
    return names, np.array(labels, dtype=np.int64)


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _left_out(names: list[str]) -> str:
    return f". Left out {len(names)} files that are not pictures: {_few(sorted(names))}" if names else ""


def _beside(source: _Source, root: tuple[str, ...]) -> str:
    """Return a note on folders beside `train` and `test`, or an empty text."""
    depth = len(root)
    inner = {name.rpartition("/")[0] for name in source.names}
    paths = [PurePosixPath(name) for name in inner.union(source.folders)]
    beside = {p.parts[depth] for p in paths if len(p.parts) > depth and p.parts[:depth] == root and not _hidden(p)}
    others = sorted(beside - {"train", "test"})
    return f"left out folders beside train/ and test/: {_few(others)}" if others else ""
