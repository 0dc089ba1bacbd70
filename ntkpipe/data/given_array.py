"""A user's array that is read in place: a mapped `.npy` or `.npz` file, or a Zarr array with any chunks."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ntkpipe.errors import DataError

# Allowed codecs of a Zarr array, which only transform bytes. Others may run code from the array's metadata (pickle).
_CODECS = frozenset(
    (
        "bytes",
        "transpose",
        "sharding_indexed",
        "blosc",
        "gzip",
        "zlib",
        "zstd",
        "lz4",
        "bz2",
        "lzma",
        "crc32c",
        "shuffle",
    )
)


@dataclass(frozen=True)
class GivenArray:
    """An array on disk. `open_given` makes it, and it is cheap to pickle.

    Args:
        path: absolute path.
        shape: shape of the array.
        dtype: `float32` or `float64`; `read` returns native byte order for any order on disk.
        chunks: chunk shape of a Zarr array; empty for other files.
        stamp: sizes and times of the file, which change when the file does; `require_same` compares them.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...]
    stamp: tuple[int, ...]

    def read(self, *where: slice) -> np.ndarray:
        """Read a part of the array, in native byte order and C order.

        Raises:
            DataError: if the file is missing, has changed since it was checked, or cannot be read.
        """
        self.require_same()
        try:
            return np.ascontiguousarray(_opened(self.path, self.stamp)[where], dtype=self.dtype)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise DataError(
                f"{self.path} cannot be read at {where} ({error}): check that the file is complete"
            ) from error

    def diagonal(self, step: int = 1024) -> np.ndarray:
        """Return the diagonal `(n,)` of a square matrix, float64.

        Args:
            step: rows of a diagonal block that is read at once from a Zarr array.
        """
        if not self.chunks:
            self.require_same()
            return np.array(_opened(self.path, self.stamp).diagonal(), dtype=np.float64)
        n, parts = self.shape[0], []
        for start in range(0, n, step):
            here = slice(start, min(start + step, n))
            parts.append(self.read(here, here).diagonal().astype(np.float64))
        return np.concatenate(parts)

    def require_same(self) -> None:
        """Raise `DataError` if the file was replaced or written to since it was opened.

        For a Zarr array only the metadata is checked, because there may be many chunks.
        """
        if _stamp(Path(self.path)) != self.stamp:
            raise DataError(f"{self.path} has changed since this run checked it: start the run again")


def open_given(path: str, setting: str, dimensions: int) -> GivenArray:
    """Open an array and read only its header.

    Args:
        path: path of a `.npy` file, of an uncompressed `.npz` with one array, or of the folder of a Zarr array.
        setting: the setting that names the path, for messages.
        dimensions: the number of dimensions that the array must have.

    Raises:
        DataError: if the path is none of these, has another dtype or shape, or uses codecs that are not trusted.
    """
    file = Path(path).expanduser().resolve()
    if not file.exists():
        raise DataError(f"{setting}={path} does not exist: give a .npy or .npz file or the folder of a Zarr array")
    try:
        if file.is_dir():
            _check_codecs(file, setting)
        array = _opened(str(file), _stamp(file))
        shape, dtype = tuple(int(n) for n in array.shape), np.dtype(array.dtype)
        chunks = tuple(int(n) for n in array.chunks) if file.is_dir() else ()
    except DataError:
        raise
    except Exception as error:  # Zarr and NumPy raise many kinds of errors for other files
        raise DataError(
            f"{setting}={path} cannot be opened ({error}): give a .npy file of plain numbers (numpy.save) or the folder of a "
            "Zarr array"
        ) from error
    if dtype.kind != "f" or dtype.itemsize not in (4, 8):
        raise DataError(f"{setting}={path} holds {dtype}: store it as float32 or float64")
    if len(shape) != dimensions or math.prod(shape) == 0:
        raise DataError(f"{setting}={path} has shape {shape}, but needs {dimensions} dimensions, none of size 0")
    return GivenArray(str(file), shape, f"float{8 * dtype.itemsize}", chunks, _stamp(file))


@lru_cache(maxsize=8)
def _opened(path: str, stamp: tuple[int, ...]) -> Any:
    """Return the mapped or opened array. The stamp is part of the cache key, so a replaced file is opened again."""
    del stamp
    if Path(path).is_dir():
        import zarr

        return zarr.open_array(path, mode="r")
    if path.endswith(".npz"):
        return _mapped_member(path)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _mapped_member(path: str) -> np.ndarray:
    """Return the only array of an `.npz`, mapped at its position in the file.

    Raises:
        DataError: if the file holds several arrays, or is compressed.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) != 1 or members[0].compress_type != zipfile.ZIP_STORED:
            names = ", ".join(member.filename.removesuffix(".npy") for member in members[:6])
            raise DataError(
                f"{path} holds {len(members)} arrays ({names}), or is compressed: the file is read in place, so it "
                "must hold one array written by numpy.savez. Or give a .npy file"
            )
        with archive.open(members[0]) as member:
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(member)
            header = member.tell()
    with open(path, "rb") as file:
        file.seek(members[0].header_offset + _NAME_LENGTHS)
        name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    start = members[0].header_offset + _LOCAL_HEADER + name + extra + header
    if dtype.hasobject:
        raise DataError(f"{path} holds objects instead of numbers: save it as float32 or float64")
    return np.memmap(path, dtype, mode="r", offset=start, shape=shape, order="F" if fortran else "C")


# Header of a file in a zip archive: bytes before its name, and the positions of the lengths of the name and the extra
# field.
_LOCAL_HEADER, _NAME_LENGTHS = 30, 26


def _stamp(file: Path) -> tuple[int, ...]:
    """Return size and modification time of the file, or of the metadata files of a Zarr array."""
    files = [file]
    if file.is_dir():
        files = [one for one in (file / "zarr.json", file / ".zarray") if one.is_file()]
    try:
        stats = [one.stat() for one in files]
    except OSError:
        return ()
    return tuple(x for stat in stats for x in (stat.st_size, stat.st_mtime_ns))


def _check_codecs(folder: Path, setting: str) -> None:
    """Refuse folders that are no Zarr array, and untrusted codecs, before Zarr reads anything."""
    metadata = next((folder / name for name in ("zarr.json", ".zarray") if (folder / name).is_file()), None)
    found = {} if metadata is None else json.loads(metadata.read_text(encoding="utf-8"))
    if metadata is None or (metadata.name == "zarr.json" and found.get("node_type") != "array"):
        inside = sorted(str(p.parent.relative_to(folder)) for p in folder.glob("*/*/zarr.json"))[:6]
        hint = f"; it holds {', '.join(inside)}" if inside else ""
        raise DataError(f"{setting}={folder} is a folder, but not a Zarr array{hint}: name the array itself")
    strange = sorted(set(_codecs(found)) - _CODECS)
    if strange:
        raise DataError(
            f"{setting}={folder} uses the codecs {', '.join(strange)}, which are not supported: store it with "
            f"{', '.join(sorted(_CODECS))} or none"
        )


def _codecs(metadata: Mapping[str, Any]) -> Iterable[str]:
    """Yield the names of all codecs in the metadata of a Zarr 2 or 3 array, including those inside shards."""
    listed = [*(metadata.get("codecs") or ()), *(metadata.get("filters") or ()), metadata.get("compressor")]
    for one in listed:
        if one is None:
            continue
        yield str(one if isinstance(one, str) else one.get("name", one.get("id")))
        inside = one.get("configuration") if isinstance(one, dict) else None
        if isinstance(inside, dict):
            for key in ("codecs", "index_codecs"):
                yield from _codecs({"codecs": inside.get(key)})
