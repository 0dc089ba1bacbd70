"""Stores objects as files in a folder, on a local disk or on a file system that all nodes share."""

from __future__ import annotations

import contextlib
import errno
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ntkpipe.errors import ConfigError, HeldError, ResourceError, StoreError
from ntkpipe.storage.foreign import OWN_FOLDERS, is_foreign_name
from ntkpipe.storage.local_lease import held_in_folder, hold_in_folder
from ntkpipe.storage.protocol import (
    LEASE_FOLDER,
    PARTIAL_SUFFIX,
    Buffer,
    Lease,
    MissingObjectError,
    as_parts,
    check_key,
    check_span,
)
from ntkpipe.storage.statistics import Statistics

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS)


@dataclass(frozen=True, init=False)
class LocalStore:
    """An `ObjectStore` in the folder `url`. The protocol documents the methods.

    An object is written to `<key>.<unique>.partial` beside its final place. It is then linked there, which fails if the
    name is taken and so gives put-if-absent, or renamed over an existing object. Leases are `flock` locks, which the
    kernel releases whenever the holder dies. Other nodes of a shared file system see the holder's beat.

    Raises:
        ConfigError: if the path exists and is not a folder.
    """

    url: str

    def __init__(self, path: str | os.PathLike[str]) -> None:
        root = os.path.abspath(os.path.expanduser(os.fspath(path)))
        if os.path.exists(root) and not os.path.isdir(root):
            raise ConfigError(f"{root} is not a folder: give a folder to store in")
        object.__setattr__(self, "url", root)

    def get(self, key: str) -> bytes:
        """Return the object's bytes."""
        path = self._path(key)
        try:
            try:
                return _read(path)
            except OSError as error:
                if error.errno != errno.ESTALE:
                    raise
                return _read(path)  # on NFS, another node replaced the file between opening and reading
        except OSError as error:
            raise self._translate(error, key) from error

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Return the object's bytes `[start:stop]`."""
        check_span(start, stop)
        try:
            with open(self._path(key), "rb", buffering=0) as file:
                file.seek(start)
                data = bytearray()
                while len(data) < stop - start and (more := file.read(stop - start - len(data))):
                    data += more
                return bytes(data)
        except OSError as error:
            raise self._translate(error, key) from error

    def put(self, key: str, data: Buffer | Sequence[Buffer], *, overwrite: bool = False) -> bool:
        """Store an object atomically."""
        parts = as_parts(data)
        path = self._path(key)
        if not overwrite and os.path.lexists(path):
            return False
        partial = f"{path}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}"
        try:
            self._write(partial, parts)
            try:
                if overwrite:
                    os.replace(partial, path)
                    return True
                os.link(partial, path)
            except FileExistsError:
                # NFS may repeat a link request whose answer was lost, and then finds its own link.
                return os.stat(partial).st_nlink == 2
            except OSError as error:
                if not overwrite and error.errno in _NO_LINKS:
                    raise StoreError(
                        f"the file system of {self.url} has no hard links, so two writers could damage each other's "
                        "objects: set store.url to a folder on another file system"
                    ) from error
                raise
            return True
        except StoreError:
            raise
        except OSError as error:
            raise self._translate(error, key, sum(p.nbytes for p in parts)) from error
        finally:
            with contextlib.suppress(OSError):  # the file was not created, was renamed, or is left for a later sweep
                os.unlink(partial)

    def exists(self, key: str) -> bool:
        """Return whether the object exists."""
        return os.path.isfile(self._path(key))

    def size(self, key: str) -> int:
        """Return the size of the object in bytes."""
        try:
            return os.stat(self._path(key)).st_size
        except OSError as error:
            raise self._translate(error, key) from error

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys that start with `prefix`, sorted."""
        folder = prefix.rpartition("/")[0]
        found = [k for k in self._walk(folder) if k.startswith(prefix) and not k.endswith(PARTIAL_SUFFIX)]
        yield from sorted(found)

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Yield the keys that start with `prefix`, sorted, and the size of each object in bytes."""
        for key in self.list(prefix):
            with contextlib.suppress(MissingObjectError):  # the object was deleted after the listing
                yield key, self.size(key)

    def folders(self, prefix: str = "") -> list[str]:
        """Return the names of the folders directly below `prefix`, sorted."""
        try:
            with os.scandir(os.path.join(self.url, prefix.rstrip("/"))) as entries:
                return sorted(
                    e.name
                    for e in entries
                    if e.is_dir() and e.name != LEASE_FOLDER and not _is_foreign(prefix.rstrip("/"), e.name)
                )
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise self._translate(error, prefix) from error

    def foreign(self) -> Sequence[str]:
        """Return the paths of files and folders of other programs, sorted."""
        return sorted(self._walk("", foreign=True))

    def delete(self, key: str) -> None:
        """Delete the object if it exists."""
        try:
            os.unlink(self._path(key))
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise self._translate(error, key) from error

    def delete_all(self, keys: Iterable[str]) -> None:
        """Delete all of these objects that exist."""
        for key in keys:
            self.delete(key)

    @contextlib.contextmanager
    def lease(self, name: str, *, holder: dict[str, Any] | str) -> Iterator[Lease]:
        """Hold `name` until the block ends or the process dies."""
        key = _lease_key(name)
        with contextlib.ExitStack() as stack:
            try:
                held = stack.enter_context(hold_in_folder(os.path.join(self.url, key), f"{name} in {self.url}", holder))
            except HeldError:
                raise
            except OSError as error:
                raise self._translate(error, key) from error
            yield held

    def holder(self, name: str) -> str | None:
        """Return a text on the holder of `name`, or None; writes nothing."""
        key = _lease_key(name)
        try:
            return held_in_folder(os.path.join(self.url, key), f"{name} in {self.url}")
        except OSError as error:
            raise self._translate(error, key) from error

    def free_bytes(self) -> int | None:
        """Return the number of bytes that can still be stored."""
        folder = self.url
        while not os.path.isdir(folder):
            folder = os.path.dirname(folder)
        stat = os.statvfs(folder)
        return stat.f_bavail * stat.f_frsize

    def sweep(self, prefix: str = "", *, older_than: float = 3600.0) -> Sequence[str]:
        """Remove leftovers of killed writers."""
        removed = []
        before = time.time() - older_than
        top = prefix.rpartition("/")[0]
        # The ages are read first, because removals update the age of their folder. A new empty folder is kept, because
        # a writer may have made it.
        folders = []
        for path, _, _ in os.walk(os.path.join(self.url, top), topdown=False):
            with contextlib.suppress(FileNotFoundError):
                folders.append((path, os.stat(path).st_mtime))
        for key in self._walk(top):
            if key.startswith(prefix) and key.endswith(PARTIAL_SUFFIX):  # `_walk` skips foreign files
                path = os.path.join(self.url, key)
                with contextlib.suppress(FileNotFoundError):
                    if os.stat(path).st_mtime <= before:
                        os.unlink(path)
                        removed.append(key)
        for path, modified in folders:
            key = os.path.relpath(path, self.url)
            inside = key.startswith(prefix.rstrip("/")) and key.split("/")[0] not in (".", LEASE_FOLDER)
            if inside and modified <= before:
                with contextlib.suppress(OSError):  # the folder is not empty
                    os.rmdir(path)
        return sorted(removed)

    def statistics(self) -> Statistics:
        """Return empty statistics, because there is no server."""
        return Statistics()

    def _path(self, key: str) -> str:
        return os.path.join(self.url, check_key(key))

    def _walk(self, folder: str, *, foreign: bool = False) -> Iterator[str]:
        """Yield the keys of all files below `folder`, with leftovers but without leases, in no order.

        If `foreign`, yield foreign files and folders instead.
        """
        pending = [folder]
        while pending:
            inside = pending.pop()
            start = f"{inside}/" if inside else ""
            try:
                with os.scandir(os.path.join(self.url, inside)) as entries:
                    for entry in entries:
                        if _is_foreign(inside, entry.name):
                            if foreign:
                                yield start + entry.name
                        elif not entry.is_dir():
                            if not foreign:
                                yield start + entry.name
                        elif start + entry.name != LEASE_FOLDER:
                            pending.append(start + entry.name)
            except (FileNotFoundError, NotADirectoryError):
                continue  # the folder does not exist, or was deleted meanwhile
            except OSError as error:
                raise self._translate(error, inside) from error

    def _write(self, path: str, parts: Sequence[memoryview]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            fd = os.open(path, flags, 0o666)
        except FileNotFoundError:  # this is the first object of its folder
            os.makedirs(os.path.dirname(path), exist_ok=True)
            fd = os.open(path, flags, 0o666)
        try:
            for part in parts:
                done = 0
                while done < part.nbytes:  # one write moves at most 2 GiB
                    done += os.write(fd, part[done:])
        finally:
            os.close(fd)

    def _translate(self, error: OSError, key: str, size: int | None = None) -> Exception:
        path = os.path.join(self.url, key)
        if isinstance(error, FileNotFoundError):
            return MissingObjectError(f"there is no object {path}")
        if error.errno in _FULL:
            what = f"{size:,} bytes" if size is not None else "anything"
            return ResourceError(
                f"no space to store {what} at {path} ({error.strerror}): free some with `ntkpipe clean`, or set "
                "store.url to a larger disk. Stored objects are intact; repeat the same command to continue."
            )
        return StoreError(f"cannot access {path}: {error.strerror or error}")


def _is_foreign(folder: str, name: str) -> bool:
    """Return whether the entry of `folder` with that name belongs to another program."""
    own = name if not folder else folder.partition("/")[0]
    return own not in OWN_FOLDERS and is_foreign_name(name)


def _lease_key(name: str) -> str:
    return f"{LEASE_FOLDER}/{check_key(name)}.lock"


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.readall()
