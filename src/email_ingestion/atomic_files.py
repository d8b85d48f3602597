"""Small files that must be whole or not there: private, atomic, locked."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from email_ingestion.errors import ConfigurationError

try:
    import fcntl
except ImportError:  # Windows: one process for each account is the operator's care there
    fcntl = None  # type: ignore[assignment]


@contextmanager
def replacing(path: Path, drafts: Path | None = None) -> Iterator[BinaryIO]:
    """A file that takes the place of `path`, mode 0600 and on the disk, when the block ends well; nothing otherwise.

    It is written in `drafts`, a directory on the same file system, or beside `path`. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # 0600 from the start; its name says little, for that of `path` may have all the length a file system allows.
    descriptor, unfinished = tempfile.mkstemp(dir=drafts or path.parent, prefix=f".{path.name[:40]}-")
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
    """Have the names in it on the disk. Raises OSError."""
    if hasattr(os, "O_DIRECTORY"):  # Windows has no handle for a directory
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_private(path: Path, content: str) -> None:
    """Replace `path` by `content`, mode 0600, in one step that survives a power cut.

    Raises ConfigurationError when the directory cannot be written.
    """
    try:
        with replacing(path) as file:
            file.write(content.encode())
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}; make {path.parent} writable") from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file beside `path`, so that two processes do not both refresh one token."""
    if fcntl is None:
        yield
        return
    lock = path.with_name(f".{path.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise ConfigurationError(f"cannot write {lock}: {error.strerror}; make {lock.parent} writable") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
