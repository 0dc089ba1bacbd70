"""Reads CIFAR-10 and CIFAR-100 in their official Python and binary versions, from a folder or a tar.gz."""

from __future__ import annotations

import logging
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ntkpipe.config import DataConfig
from ntkpipe.data.download import fetch
from ntkpipe.data.raw import RawImages
from ntkpipe.data.restricted_pickle import load_plain
from ntkpipe.errors import DataError

_log = logging.getLogger(__name__)

OFFICIAL_URL = "https://www.cs.toronto.edu/~kriz/"
_PIXELS = 3 * 32 * 32
# The largest official member has 155 MB; a larger one is a decompression bomb or another file.
_MEMBER_BYTES = 512 << 20

_CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100_WORDS = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can "
    "castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin "
    "elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard "
    "lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear "
    "pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark "
    "shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone "
    "television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)
_CIFAR100_NAMES = tuple(_CIFAR100_WORDS.split())

Batch = tuple[np.ndarray, np.ndarray]  # planes (n, 3072) uint8 and labels (n,) int64


@dataclass(frozen=True)
class Edition:
    """One official archive: its file name and md5, its batches, and how to read one."""

    archive: str
    md5: str
    folder: str
    train: tuple[str, ...]
    test: str
    read: Callable[[bytes, str], Batch]


def _python_batch(content: bytes, name: str) -> Batch:
    batch = load_plain(content, name)
    labels: Any = None
    if isinstance(batch, dict):
        labels = batch.get("labels", batch.get("fine_labels"))
    if labels is None or not isinstance(batch.get("data"), np.ndarray):
        raise DataError(
            f"{name} is not a CIFAR batch: it needs `data` and `labels` (or `fine_labels`). Use the official file"
        )
    data = batch["data"]
    if data.ndim != 2 or data.shape[1] != _PIXELS or data.dtype != np.uint8:
        raise DataError(f"{name} holds data of shape {data.shape} and dtype {data.dtype}, not (n, {_PIXELS}) uint8")
    y = np.asarray(labels)
    if y.ndim != 1 or y.dtype.kind not in "iu" or y.shape[0] != data.shape[0]:
        raise DataError(
            f"{name} holds {y.size} labels of dtype {y.dtype} for {data.shape[0]} images: use the official file"
        )
    return data, y.astype(np.int64)


def _binary_batch(label_bytes: int) -> Callable[[bytes, str], Batch]:
    def read(content: bytes, name: str) -> Batch:
        record = label_bytes + _PIXELS
        if not content or len(content) % record:
            raise DataError(
                f"{name} has {len(content)} bytes, not a multiple of {record}: it is truncated or another file. "
                "Use the official file"
            )
        records = np.frombuffer(content, np.uint8).reshape(-1, record)
        # CIFAR-100 puts the coarse label before the fine one.
        return records[:, label_bytes:], records[:, label_bytes - 1].astype(np.int64)

    return read


EDITIONS: dict[str, tuple[Edition, ...]] = {
    "cifar10": (
        Edition(
            "cifar-10-python.tar.gz",
            "c58f30108f718f92721af3b95e74349a",
            "cifar-10-batches-py",
            tuple(f"data_batch_{k}" for k in range(1, 6)),
            "test_batch",
            _python_batch,
        ),
        Edition(
            "cifar-10-binary.tar.gz",
            "c32a1d4ab5d03f1284b67883e8d87530",
            "cifar-10-batches-bin",
            tuple(f"data_batch_{k}.bin" for k in range(1, 6)),
            "test_batch.bin",
            _binary_batch(1),
        ),
    ),
    "cifar100": (
        Edition(
            "cifar-100-python.tar.gz",
            "eb9058c3a382ffc7106e4002c42a8d85",
            "cifar-100-python",
            ("train",),
            "test",
            _python_batch,
        ),
        Edition(
            "cifar-100-binary.tar.gz",
            "03b5dce01913d631647c71ecec9e9cb8",
            "cifar-100-binary",
            ("train.bin",),
            "test.bin",
            _binary_batch(2),
        ),
    ),
}


def load(config: DataConfig) -> RawImages:
    """Load CIFAR-10 or CIFAR-100 (fine labels).

    `config.path` is a tar.gz, the folder inside it, or a folder that holds either. Pickles are read by a restricted
    reader. Archives are read member by member and never unpacked to disk.

    Returns:
        Images `(n, 32, 32, 3)` uint8 and labels `(n,)` int64, in the order of the batch files.

    Raises:
        DataError: if the files are absent or malformed. For absent files the text gives their names and checksums.
    """
    editions = EDITIONS[config.kind]
    path = Path(str(config.path)).expanduser()
    found = _find(path, editions)
    if found is None and config.download:
        edition = editions[0]
        target = path if path.name.endswith((".tar.gz", ".tgz")) else path / edition.archive
        fetch(config.source or OFFICIAL_URL + edition.archive, target, md5=edition.md5)
        found = target
    if found is None:
        raise DataError(_absent(config.kind, path, editions))
    members = {name for e in editions for name in (*e.train, e.test)}
    batches = dict(_read_batches(found, members, editions))
    for edition in editions:
        if {*edition.train, edition.test} <= batches.keys():
            break
    else:
        best = max(editions, key=lambda e: len({*e.train, e.test} & batches.keys()))
        missing = [name for name in (*best.train, best.test) if name not in batches]
        raise DataError(f"{found} lacks {', '.join(missing)}: download {best.archive} (md5 {best.md5}) again")
    x_train, y_train = _images([batches[name] for name in edition.train])
    x_test, y_test = _images([batches[edition.test]])
    names = _CIFAR10_NAMES if config.kind == "cifar10" else _CIFAR100_NAMES
    return RawImages(x_train, y_train, x_test, y_test, names)


def _find(path: Path, editions: tuple[Edition, ...]) -> Path | None:
    if path.is_file():
        return path
    for edition in editions:
        for folder in (path, path / edition.folder):
            if (folder / edition.train[0]).is_file():
                return folder
    for edition in editions:
        if (path / edition.archive).is_file():
            return path / edition.archive
    return None


def _absent(kind: str, path: Path, editions: tuple[Edition, ...]) -> str:
    choices = " or ".join(f"{e.archive} (md5 {e.md5})" for e in editions)
    return (
        f"no {kind} data at data.path={path}. Download {choices} from {OFFICIAL_URL}{editions[0].archive} "
        f"(binary version: {OFFICIAL_URL}{editions[1].archive}) and set data.path to that file or to the folder "
        "unpacked from it, or set data.download=true to have it fetched into data.path"
    )


def _read_batches(found: Path, members: set[str], editions: tuple[Edition, ...]) -> Iterator[tuple[str, Batch]]:
    readers = {name: e.read for e in editions for name in (*e.train, e.test)}
    if found.is_dir():
        for name in sorted(members):
            if (found / name).is_file():
                yield name, readers[name]((found / name).read_bytes(), str(found / name))
        return
    try:
        with tarfile.open(found, "r:*") as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if name not in members or not member.isfile():
                    continue
                if member.size > _MEMBER_BYTES:
                    raise DataError(
                        f"{found}: member {member.name} has {member.size} bytes, which is too large for "
                        "CIFAR: download the archive again"
                    )
                file = archive.extractfile(member)
                assert file is not None  # a regular file
                yield name, readers[name](file.read(), f"{found}:{member.name}")
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        checksums = ", ".join(f"{e.archive} {e.md5}" for e in editions)
        raise DataError(
            f"{found} cannot be read as a tar.gz ({error}): download it again and check its md5 ({checksums})"
        ) from error


def _images(batches: list[Batch]) -> Batch:
    n = sum(planes.shape[0] for planes, _ in batches)
    x = np.empty((n, 32, 32, 3), dtype=np.uint8)
    start = 0
    for planes, _ in batches:
        stop = start + planes.shape[0]
        x[start:stop] = planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        start = stop
    return x, np.concatenate([y for _, y in batches])
