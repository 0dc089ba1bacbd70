"""Image files sorted into `train/<class>/*` and `test/<class>/*`, in a folder or a zip."""

from __future__ import annotations

import io
import logging
import re
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ntkpipe.config import DataConfig
from ntkpipe.data.raw import RawImages
from ntkpipe.errors import DataError
from ntkpipe.limits import processors

_log = logging.getLogger(__name__)

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
# No honest image file is larger, and a zip may promise anything.
_FILE_BYTES = 256 << 20
_FILES_PER_TASK = 128
_GRAY = ("1", "L", "LA")


class _ColourFoundError(Exception):
    """A colour image in a set that began with gray ones."""


@dataclass(frozen=True)
class _Source:
    """Relative names of the image files, and how to read one."""

    what: str
    names: tuple[str, ...]
    read: Callable[[str], bytes]


def load(config: DataConfig) -> RawImages:
    """All images, uint8 `(n, h, w, 3)`, or `(n, h, w, 1)` if every one is gray.

    Classes are the sorted folder names of `train`; within a class files are ordered by name, numbers by value. Other
    files and hidden ones are ignored. With `config.image_size` images are resized (bicubic).

    Raises:
        DataError: if the layout is not this one, a file is no image, or sizes differ; the text names the file.
    """
    path = Path(str(config.path)).expanduser()
    if path.is_dir():
        source = _Source(str(path), tuple(_walk(path)), lambda name: _read_file(path / name))
        return _load(source, config)
    if not path.is_file():
        raise DataError(
            f"data.path={path} is neither a folder nor a zip file: give one with train/<class>/* and test/<class>/*"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            infos = {i.filename: i for i in archive.infolist() if not i.is_dir()}
            return _load(_Source(str(path), tuple(infos), lambda name: _read_member(archive, infos[name])), config)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        # RuntimeError: an encrypted member.
        raise DataError(f"{path} cannot be read as a zip of images ({error}): make the archive again") from error


def _walk(root: Path) -> list[str]:
    return [str(PurePosixPath(p.relative_to(root))) for part in ("train", "test") for p in (root / part).glob("*/*")]


def _read_file(path: Path) -> bytes:
    try:
        if path.stat().st_size > _FILE_BYTES:
            raise DataError(f"{path} has more than {_FILE_BYTES >> 20} MB: no image of a data set is that large")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check its permissions") from error


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.file_size > _FILE_BYTES:
        raise DataError(f"{info.filename} unpacks to {info.file_size >> 20} MB: no image of a data set is that large")
    try:
        return archive.read(info)
    except (zlib.error, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{info.filename} in {archive.filename} is damaged ({error}): make the archive again"
        ) from error


def natural_key(name: str) -> tuple[list[int | str], str]:
    """Sort key under which `2.png` comes before `10.png`; a total order, because the name itself breaks ties."""
    return [int(t) if i % 2 else t for i, t in enumerate(re.split(r"([0-9]+)", name))], name


def _load(source: _Source, config: DataConfig) -> RawImages:
    parts = _parts(source)
    classes = sorted({PurePosixPath(name).parts[-2] for name in parts["train"]})
    for name in parts["test"]:
        if PurePosixPath(name).parts[-2] not in classes:
            raise DataError(
                f"{name} in {source.what} is of a class that train/ does not have: add training images or remove it"
            )
    label = {name: k for k, name in enumerate(classes)}

    def ordered(part: str) -> tuple[list[str], np.ndarray]:
        keyed = sorted((label[PurePosixPath(n).parts[-2]], natural_key(PurePosixPath(n).name), n) for n in parts[part])
        return [n for _, _, n in keyed], np.array([k for k, _, _ in keyed], dtype=np.int64)

    train, y_train = ordered("train")
    test, y_test = ordered("test")
    try:
        x = _decode_all(source, train + test, config.image_size)
    except _ColourFoundError:
        x = _decode_all(source, train + test, config.image_size, colour=True)
    return RawImages(x[: len(train)], y_train, x[len(train) :], y_test, tuple(classes))


def _parts(source: _Source) -> dict[str, list[str]]:
    """Names of the images of `train` and `test`; a common folder above them, as zips often have, is passed over."""
    parts: dict[str, list[str]] = {"train": [], "test": []}
    roots = set()
    for name in source.names:
        p = PurePosixPath(name)
        if any(s.startswith(".") or s == "__MACOSX" for s in p.parts) or p.suffix.lower() not in SUFFIXES:
            continue
        if len(p.parts) >= 3 and p.parts[-3] in parts:
            parts[p.parts[-3]].append(name)
            roots.add(p.parts[:-3])
    for part, names in parts.items():
        if not names:
            raise DataError(
                f"{source.what} holds no images under {part}/<class>/: sort them into train/<class>/* and "
                f"test/<class>/* ({', '.join(sorted(SUFFIXES))})"
            )
    if len(roots) > 1:
        found = ", ".join(sorted("/".join(r) or "." for r in roots))
        raise DataError(f"{source.what} holds several data sets ({found}): keep one train/ and one test/")
    return parts


def _decode_all(source: _Source, names: list[str], size: tuple[int, ...] | None, *, colour: bool = False) -> np.ndarray:
    # The first image decides shape and channels; all are decoded straight into the one array.
    first = _decode(source, names[0], size, colour=colour)
    out = np.empty((len(names), *first.shape), dtype=np.uint8)
    stop = threading.Event()

    def task(start: int) -> None:
        for k in range(start, min(start + _FILES_PER_TASK, len(names))):
            if stop.is_set():
                return
            image = _decode(source, names[k], size, colour=colour)
            if image.shape[:2] != first.shape[:2]:
                raise DataError(
                    f"{names[k]} has {image.shape[0]} x {image.shape[1]} pixels and {names[0]} has {first.shape[0]} x "
                    f"{first.shape[1]}: set data.image_size=[height,width] to resize all images"
                )
            if image.shape[2] > first.shape[2]:
                raise _ColourFoundError
            out[k] = image  # gray spreads over three channels

    with warnings.catch_warnings(), ThreadPoolExecutor(processors()) as pool:
        # Pillow warns at its limit of pixels and raises at twice the limit; a data set has no use for either.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        futures = [pool.submit(task, start) for start in range(0, len(names), _FILES_PER_TASK)]
        try:
            # In order, so that the first bad file is named, whichever thread was fastest.
            for future in futures:
                future.result()
        except BaseException:
            stop.set()
            raise
    return out


def _decode(source: _Source, name: str, size: tuple[int, ...] | None, *, colour: bool) -> np.ndarray:
    content = source.read(name)
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode in ("F", "I") or image.mode.startswith("I;"):
                raise DataError(
                    f"{name} has mode {image.mode} (more than 8 bits): convert it to 8 bits, or use data=npz"
                )
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")
            image = image.convert("L" if image.mode in _GRAY and not colour else "RGB")
            if size is not None:
                image = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
            x = np.asarray(image)
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name} is refused: {error}") from error
    # Pillow's decoders raise many kinds of errors on damaged files.
    except Exception as error:
        raise DataError(
            f"{name} in {source.what} cannot be read as an image ({error}): remove or replace it"
        ) from error
    return x if x.ndim == 3 else x[..., None]
