"""Reads MNIST and other data sets in the idx format."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from ntkpipe.config import DataConfig
from ntkpipe.data.download import fetch
from ntkpipe.data.raw import RawImages
from ntkpipe.errors import DataError

# The original site no longer serves the files. This is the mirror that PyTorch's authors maintain.
OFFICIAL_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_BLOCK = 1 << 24
FILES = {
    "x_train": ("train-images-idx3-ubyte", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
    "y_train": ("train-labels-idx1-ubyte", "d53e105ee54ea40749a09fcbcd1e9432"),
    "x_test": ("t10k-images-idx3-ubyte", "9fb629c4189551a2d022fa330f9573f3"),
    "y_test": ("t10k-labels-idx1-ubyte", "ec29112dd5afa0611ce80d1b7f02629c"),
}


def load(config: DataConfig) -> RawImages:
    """Load the four idx files in the folder `config.path`, plain or gzipped.

    Returns:
        Images `(n, h, w)` uint8 and labels `(n,)` uint8.

    Raises:
        DataError: if a file is absent or malformed. For an absent file the text gives its name and checksum.
    """
    folder = Path(str(config.path)).expanduser()
    paths = {key: _find(folder, name) for key, (name, _) in FILES.items()}
    for key, (name, md5) in FILES.items():
        if paths[key] is None and config.download:
            source = (config.source or OFFICIAL_URL).rstrip("/")
            fetch(f"{source}/{name}.gz", folder / f"{name}.gz", md5=md5)
            paths[key] = folder / f"{name}.gz"
    absent = [f"{name}.gz (md5 {md5})" for key, (name, md5) in FILES.items() if paths[key] is None]
    if absent:
        raise DataError(
            f"data.path={folder} must be a folder with the MNIST idx files, but it lacks {', '.join(absent)}: download "
            f"them from {OFFICIAL_URL}, or set data.download=true"
        )
    arrays = {key: read_idx(path, 3 if key.startswith("x") else 1) for key, path in paths.items() if path is not None}
    return RawImages(*(arrays[key] for key in FILES), class_names=tuple(str(k) for k in range(10)))


def _find(folder: Path, name: str) -> Path | None:
    # Some distributions call a file train-images.idx3-ubyte.
    for stem in (name, name.replace("-idx", ".idx")):
        for path in (folder / stem, folder / f"{stem}.gz"):
            if path.is_file():
                return path
    return None


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read the uint8 array of an idx file with the given number of dimensions.

    Raises:
        DataError: if the file has another format, or a length that differs from its header.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            header = file.read(4 + 4 * dimensions)
            if len(header) < 4 + 4 * dimensions or header[:4] != bytes([0, 0, 8, dimensions]):
                raise DataError(
                    f"{path} is not an idx file of uint8 with {dimensions} dimensions (it starts with "
                    f"{header[:4].hex()}, expected {bytes([0, 0, 8, dimensions]).hex()}): use the official file"
                )
            shape = struct.unpack(f">{dimensions}I", header[4:])
            size = math.prod(shape)
            # Read in blocks, because a damaged header may declare more than fits into memory.
            content = bytearray()
            while len(content) <= size and (block := file.read(min(_BLOCK, size + 1 - len(content)))):
                content += block
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read ({error}): download it again") from error
    if len(content) != size:
        raise DataError(
            f"{path} holds {len(content)} bytes where its header says {size}: it is damaged, download it again"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)
