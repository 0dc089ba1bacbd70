"""Image files sorted into `train/<class>/*` and `test/<class>/*`, in a folder or a zip."""

from __future__ import annotations

import io
import os
import re
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps

from ntkpipe.config import DataConfig
from ntkpipe.data.image_parts import arranged, parts_of
from ntkpipe.data.npz import split
from ntkpipe.data.raw import RawImages
from ntkpipe.errors import DataError
from ntkpipe.limits import processors

# What a file with one of these endings is meant to be: damage is an error then. Of all others the content decides.
SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}
)
# Decoders of pictures. Pillow has others, which start programs (EPS), or take much for theirs that is not (TGA).
Image.init()
_FORMATS = tuple(
    name
    for name in ("PNG", "JPEG", "MPO", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "ICO", "AVIF")
    if name in Image.OPEN  # AVIF is new
)
# No honest image file is larger, and a zip may promise anything.
_FILE_BYTES = 256 << 20
_FILES_PER_TASK = 128
_GRAY = ("1", "L", "LA")
_ORIENTATION = 0x0112
# In Pillow's words, of PNG and TIFF and of PPM; `BGR;16` is 16 bits for all three colours.
_DEEP = re.compile(r"(RGB|RGBA|LA|CMYK);16|RGB', 65535")
# Left out without a word: what file managers leave behind.
_LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})


class _TooLargeError(DataError):
    """A file of a size that no picture has."""


class _ColourFoundError(Exception):
    """A colour image in a set that began with gray ones."""


@dataclass(frozen=True)
class _Source:
    """Relative names of all files and folders, and how to read a file.

    Args:
        what: for messages.
        names: of files.
        folders: of folders, as far as they are known.
        read: the content of a file.
    """

    what: str
    names: tuple[str, ...]
    folders: tuple[str, ...]
    read: Callable[[str], bytes]


def load(config: DataConfig) -> RawImages:
    """All images, uint8 `(n, h, w, 3)`, or `(n, h, w, 1)` if every one is gray.

    Where there is no `test`, `val`, `valid` or `validation` takes its place; with `config.test_fraction` such a share of `train`, or
    all images where these are not divided, is drawn. Classes are the sorted folder names of `train`; within a class, sub-folders
    included, files are ordered by name, numbers by value. Whatever Pillow reads as a picture is one; hidden files are ignored, others
    are left out, and the notes name them. Pictures are turned as their EXIF orientation says. With `config.image_size` images are
    resized (bicubic).

    Raises:
        DataError: if the layout is not this one, a class has no picture, a file is damaged, or sizes differ; the text names
            the file.
    """
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
        # RuntimeError: an encrypted member.
        raise DataError(f"{path} cannot be read as a zip of images ({error}): make the archive again") from error


def _walk(root: Path, *, divided: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the files and folders below `train` and `test`, or what stands for them, and of the folders beside these.

    Links are followed once.
    """
    files: list[str] = []
    folders = [one.name for one in root.iterdir() if one.is_dir()]
    seen: set[str] = set()
    for part in parts_of(folders, divided=divided):
        for folder, inside, names in os.walk(root / part, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:  # a link to a folder above it
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
            raise _TooLargeError(f"{path} has more than {_FILE_BYTES >> 20} MB: no image of a data set is that large")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check its permissions") from error


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.file_size > _FILE_BYTES:
        raise _TooLargeError(
            f"{info.filename} unpacks to {info.file_size >> 20} MB: no image of a data set is that large"
        )
    try:
        return archive.read(info)
    except (zlib.error, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{info.filename} in {archive.filename} is damaged ({error}): make the archive again"
        ) from error


def natural_key(name: str) -> tuple[list[int | str], str]:
    """Sort key under which `2.png` comes before `10.png`; a total order, because the name itself breaks ties."""
    return [int(t) if i % 2 else t for i, t in enumerate(re.split(r"([0-9]+)", name))], name


@dataclass(frozen=True)
class _Part:
    """Pictures of `train` or `test`: names by class, the files that are none, and every class folder."""

    pictures: dict[str, list[str]]
    others: list[str]
    classes: set[str]


def _load(source: _Source, config: DataConfig) -> RawImages:
    divided = config.test_fraction is None
    source = _arranged(source, divided=divided)
    root = _root(source)
    parts = {part: _part(source, (*root, part)) for part in ("train", "test")}
    if not divided and parts["test"].pictures:
        raise DataError(
            f"data.test_fraction={config.test_fraction:g}: {source.what} has test images of its own. Leave the setting out"
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
                f"{names[0]} in {source.what} is of a class that train/ does not have: add training images or remove it"
            )
    train, y_train = _ordered(parts["train"], classes, len(root) + 2)
    test, y_test = _ordered(parts["test"], classes, len(root) + 2)
    try:
        x, changed = _decode_all(source, train + test, config.image_size)
    except _ColourFoundError:
        x, changed = _decode_all(source, train + test, config.image_size, colour=True)
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
    """The same with its images under `train` and `test`."""
    own = arranged(source.names, divided=divided)
    if all(name == there for name, there in own.items()):
        return source
    folders = {str(parent) for name in own for parent in PurePosixPath(name).parents} - {"."}

    def read(name: str) -> bytes:
        return source.read(own.get(name, name))

    return replace(source, names=tuple(own), folders=tuple(sorted(folders)), read=read)


def _hidden(path: PurePosixPath) -> bool:
    return any(part.startswith(".") or part.lower() in _LITTER for part in path.parts)


def _root(source: _Source) -> tuple[str, ...]:
    """The folder that holds `train` and `test`: the top, or one below it, as zips often have."""
    found: dict[str, set[tuple[str, ...]]] = {"train": set(), "test": set()}
    for name in source.names:
        path = PurePosixPath(name)
        for k, part in enumerate(path.parts[:-2]):
            if part in found and not _hidden(path):
                found[part].add(path.parts[:k])
    both = found["train"] & found["test"]
    # A class may have a sub-folder of that name.
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
    for name in source.names:
        path = PurePosixPath(name)
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
    try:
        content = source.read(name)
    except _TooLargeError:
        return False
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS):
            return True
    except Exception:  # of many kinds; what cannot be opened is none
        return False


def _classes(source: _Source, train: _Part) -> list[str]:
    """Class folders of `train`, sorted; every one must have pictures, and a name that no other has but for its case."""
    for name in sorted(train.classes - train.pictures.keys()):
        inside = [other for other in train.others if f"/{name}/" in f"/{other}"]
        raise DataError(
            f"class {name!r} of {source.what} has no picture that can be read under train/{_left_out(inside)}. Convert its "
            "files to PNG or JPEG, or remove the folder"
        )
    folded: dict[str, str] = {}
    for name in sorted(train.pictures):
        first = folded.setdefault(name.strip().casefold(), name)
        if first != name:
            raise DataError(
                f"{source.what} has classes {first!r} and {name!r}, which differ in case or spaces alone: merge or rename them"
            )
    return sorted(train.pictures)


def _ordered(part: _Part, classes: list[str], depth: int) -> tuple[list[str], np.ndarray]:
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        inside = part.pictures.get(name, [])
        names += sorted(inside, key=lambda n: (natural_key("/".join(PurePosixPath(n).parts[depth:])), n))
        labels += [label] * len(inside)
    return names, np.array(labels, dtype=np.int64)


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _left_out(names: list[str]) -> str:
    return f". {len(names)} files that are no pictures are left out: {_few(sorted(names))}" if names else ""


def _beside(source: _Source, root: tuple[str, ...]) -> str:
    """Of folders beside `train` and `test`."""
    depth = len(root)
    paths = [PurePosixPath(name) for name in (*source.folders, *(str(PurePosixPath(n).parent) for n in source.names))]
    beside = {p.parts[depth] for p in paths if len(p.parts) > depth and p.parts[:depth] == root and not _hidden(p)}
    others = sorted(beside - {"train", "test"})
    return f"folders beside train/ and test/ are left out: {_few(others)}" if others else ""


Changes = dict[str, list[str]]


def _decode_all(
    source: _Source, names: list[str], size: tuple[int, ...] | None, *, colour: bool = False
) -> tuple[np.ndarray, Changes]:
    """All pictures, and what was changed of which."""
    # The first image decides shape and channels; all are decoded straight into the one array.
    first, _ = _decode(source, names[0], size, colour=colour)
    out = np.empty((len(names), *first.shape), dtype=np.uint8)
    stop = threading.Event()

    def task(start: int) -> list[tuple[str, str]]:
        changed: list[tuple[str, str]] = []
        for k in range(start, min(start + _FILES_PER_TASK, len(names))):
            if stop.is_set():
                break
            image, changes = _decode(source, names[k], size, colour=colour)
            if image.shape[:2] != first.shape[:2]:
                raise DataError(
                    f"{names[k]} has {image.shape[0]} x {image.shape[1]} pixels and {names[0]} has {first.shape[0]} x "
                    f"{first.shape[1]}: set data.image_size=[height,width] to resize all images"
                )
            if image.shape[2] > first.shape[2]:
                raise _ColourFoundError
            out[k] = image  # gray spreads over three channels
            changed += [(what, names[k]) for what in changes]
        return changed

    found: Changes = {}
    with warnings.catch_warnings(), ThreadPoolExecutor(processors()) as pool:
        # Pillow warns at its limit of pixels and raises at twice the limit; a data set has no use for either.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        futures = [pool.submit(task, start) for start in range(0, len(names), _FILES_PER_TASK)]
        try:
            # In order, so that the first bad file is named, whichever thread was fastest.
            for future in futures:
                for what, name in future.result():
                    found.setdefault(what, []).append(name)
        except BaseException:
            stop.set()
            raise
    return out, found


def _decode(
    source: _Source, name: str, size: tuple[int, ...] | None, *, colour: bool
) -> tuple[np.ndarray, tuple[str, ...]]:
    content = source.read(name)
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.mode in ("F", "I") or image.mode.startswith("I;"):
                raise DataError(
                    f"{name} has mode {image.mode} (more than 8 bits): convert it to 8 bits, or use data=npz"
                )
            changes = _changes(image)
            plain = ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) != 1 else image
            if plain.mode == "P" and "transparency" in plain.info:
                plain = plain.convert("RGBA")
            if plain.mode in ("RGBA", "LA", "PA") and np.asarray(plain.getchannel("A")).min() < 255:
                changes = (*changes, "have transparent pixels: their colours are taken, their transparency is not")
            plain = plain.convert("L" if plain.mode in _GRAY and not colour else "RGB")
            if size is not None:
                plain = plain.resize((size[1], size[0]), Image.Resampling.BICUBIC)
            x = np.asarray(plain)
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name} is refused: {error}") from error
    # Pillow's decoders raise many kinds of errors on damaged files.
    except Exception as error:
        raise DataError(
            f"{name} in {source.what} cannot be read as an image ({error}): remove or replace it"
        ) from error
    return (x if x.ndim == 3 else x[..., None]), changes


def _changes(image: Image.Image) -> tuple[str, ...]:
    """What is lost of a picture, before it is decoded."""
    found = []
    # Cameras store previews as further pictures.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        found.append("have several frames: the first is taken")
    if image.mode in ("CMYK", "LAB", "HSV"):
        found.append(f"are {image.mode}: converted to RGB without a colour profile")
    if any(_DEEP.search(str(args)) for _, _, _, args in getattr(image, "tile", ())):
        found.append("have 16 bits per colour: read as 8 bits")
    return tuple(found)
