"""Decodes pictures with Pillow into one array, with one thread per processor unless pictures are small."""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, ImageOps

from ntkpipe.errors import DataError
from ntkpipe.limits import processors

# Allowed decoders. Others in Pillow start programs (EPS) or accept files of other formats (TGA).
Image.init()
_FORMATS = tuple(
    name
    for name in ("PNG", "JPEG", "MPO", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "ICO", "AVIF")
    if name in Image.OPEN  # AVIF is new
)
_FILES_PER_TASK = 128
# Smallest first file, in bytes, for which threads pay. Smaller pictures spend their time in Python, where threads wait for each
# other: 4,000 CIFAR-10 images of about 1 kB take 1.0 s with one thread, and 1.2 s with two.
_THREADED_BYTES = 4096
_GRAY = ("1", "L", "LA")
_ORIENTATION = 0x0112
# Pillow's names of modes in PNG, TIFF and PPM; `BGR;16` has 16 bits for all three colours.
_DEEP = re.compile(r"(RGB|RGBA|LA|CMYK);16|RGB', 65535")

Read = Callable[[str], bytes]
"""The content of a file, by its name."""

Changes = dict[str, list[str]]
"""Changes to pictures, and the pictures that were changed."""


class _ColourFoundError(Exception):
    """Signals a colour image in a set whose first image is gray."""


def is_picture(content: bytes) -> bool:
    """Return whether Pillow can open a file as a picture."""
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS):
            return True
    except Exception:  # Pillow raises errors of many kinds; a file that cannot be opened is not a picture
        return False


def decode_all(read: Read, names: list[str], size: tuple[int, ...] | None, what: str) -> tuple[np.ndarray, Changes]:
    """Decode all pictures into one array.

    Args:
        read: returns the content of a file.
        names: names of the files, in order.
        size: (height, width) in pixels to which pictures are resized; None refuses different sizes.
        what: folder or archive of the files, for messages.

    Returns:
        (n, h, w, 3) uint8, or (n, h, w, 1) if every picture is gray, and the changes that decoding made.

    Raises:
        DataError: if a file is damaged or has another size. The text names the first such file.
    """
    try:
        return _decode_all(read, names, size, what)
    except _ColourFoundError:
        return _decode_all(read, names, size, what, colour=True)


def _decode_all(
    read: Read, names: list[str], size: tuple[int, ...] | None, what: str, *, colour: bool = False
) -> tuple[np.ndarray, Changes]:
    # The first image decides shape and channels. Every image is decoded directly into the same array.
    first, _ = _decode(read, names[0], size, what, colour=colour)
    out = np.empty((len(names), *first.shape), dtype=np.uint8)
    stop = threading.Event()

    def task(start: int) -> list[tuple[str, str]]:
        changed: list[tuple[str, str]] = []
        for k in range(start, min(start + _FILES_PER_TASK, len(names))):
            if stop.is_set():
                break
            image, changes = _decode(read, names[k], size, what, colour=colour)
            if image.shape[:2] != first.shape[:2]:
                raise DataError(
                    f"{names[k]} has {image.shape[0]} x {image.shape[1]} pixels and {names[0]} has {first.shape[0]} x "
                    f"{first.shape[1]}: set data.image_size=[height,width] to resize all images"
                )
            if image.shape[2] > first.shape[2]:
                raise _ColourFoundError
            out[k] = image  # gray images fill three channels
            changed += [(change, names[k]) for change in changes]
        return changed

    found: Changes = {}
    threads = processors() if len(read(names[0])) >= _THREADED_BYTES else 1
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        # Pillow warns at its limit of pixels and raises at twice the limit. A data set needs neither.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        futures = [pool.submit(task, start) for start in range(0, len(names), _FILES_PER_TASK)]
        try:
            # Results are read in order, so that the error names the first bad file, not the one found fastest.
            for future in futures:
                for change, name in future.result():
                    found.setdefault(change, []).append(name)
        except BaseException:
            stop.set()
            raise
    return out, found


def _decode(
    read: Read, name: str, size: tuple[int, ...] | None, what: str, *, colour: bool
) -> tuple[np.ndarray, tuple[str, ...]]:
    content = read(name)
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
                changes = (*changes, "have transparent pixels: read with their colours, without transparency")
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
        raise DataError(f"{name} in {what} cannot be read as an image ({error}): remove or replace it") from error
    return (x if x.ndim == 3 else x[..., None]), changes


def _changes(image: Image.Image) -> tuple[str, ...]:
    """Return descriptions of what decoding will lose of a picture, from its header."""
    found = []
    # MPO files are left out: cameras store previews as further frames.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        found.append("have several frames: only the first is read")
    if image.mode in ("CMYK", "LAB", "HSV"):
        found.append(f"are {image.mode}: converted to RGB without a colour profile")
    if any(_DEEP.search(str(args)) for _, _, _, args in getattr(image, "tile", ())):
        found.append("have 16 bits per colour: read as 8 bits")
    return tuple(found)
