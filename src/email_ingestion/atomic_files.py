"""Small files that must be whole or not there: private, atomic, locked."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from email_ingestion.errors import ConfigurationError, DiskFull, OperationFailed

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
DRAFT_CHARACTERS = 40  # of a file's name, in that of its draft


@contextmanager
def atomic_write(path: Path, drafts: Path | None = None) -> Iterator[BinaryIO]:
    """Yield a file that replaces `path`, mode 0600 and synced to the disk, when the block ends without an error.

    The draft lies in the directory `drafts` on the same file system, or beside `path`. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # mkstemp makes it 0600. Its name is short because that of `path` may be as long as a file system allows.
    descriptor, unfinished = tempfile.mkstemp(dir=drafts or path.parent, prefix=f".{path.name[:DRAFT_CHARACTERS]}-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(unfinished)
        raise


def sync_directory(directory: Path) -> None:
    """Sync the names in a directory to the disk. Raises OSError."""
    if hasattr(os, "O_DIRECTORY"):  # Windows has no handle for a directory
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_private(path: Path, content: str) -> None:
    """Replace the content of `path`, mode 0600, in one step that survives a power cut.

    Raises ConfigurationError when the directory cannot be written, DiskFull when there is no room.
    """
    try:
        with atomic_write(path) as file:
            file.write(content.encode())
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path | str, error: OSError, remedy: str = "") -> ConfigurationError:
    """Return our error for a file that cannot be written: DiskFull where the disk takes none, which no setting changes.

    `remedy` is what else to do; a full or read-only disk has its own.
    """
    of_disk = error.errno in FULL or error.errno == errno.EROFS
    own = of_disk or not remedy
    kind = DiskFull if of_disk else ConfigurationError
    return kind(f"cannot write {path}: {error.strerror}; {make_writable(Path(path).parent, error) if own else remedy}")


def unreadable(path: Path | str, error: OSError) -> OperationFailed:
    """Return our error for a file or folder that is there and cannot be read."""
    return OperationFailed(f"cannot read {path}: {error.strerror}; give the command as its owner, or make it readable")


def make_writable(folder: Path | str, error: OSError) -> str:
    """Return what to do so that a folder takes files again: a full disk needs room, not rights."""
    match error.errno:
        case errno.EFBIG:
            return "a file may not be so large here: see `ulimit -f`"
        case errno.EROFS:
            return f"the disk of {folder} is mounted read-only: `dmesg | tail` says why"
        case number if number in FULL:
            return f"make room on its disk: df -h {folder}; df -i {folder}"
    return f"make {folder} writable"


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold the lock file beside `path`; wait while another process or thread holds it.

    Raises ConfigurationError when the directory cannot be written, DiskFull when there is no room.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"), mode=0o600)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(lock.lock_file, os.O_RDWR | os.O_CREAT, 0o600))  # filelock may try for ever where none can be
        lock.acquire()
    except OSError as error:
        raise unwritable(lock.lock_file, error) from error
    try:
        yield
    finally:
        lock.release()
