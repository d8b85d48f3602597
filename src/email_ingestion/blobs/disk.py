"""Blobs as files in a directory, each under its name only when it is complete and on the disk."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from email_ingestion.atomic_files import atomic_write, sync_directory
from email_ingestion.blobs.reference import Aged, missing, path_of, reference, reference_to, verified
from email_ingestion.errors import ConfigurationError, SinkUnavailable

_ORPHAN = "-orphan"
_DIGEST = re.compile("[0-9a-f]{64}")


class DiskBlobs:
    """See `Blobs`."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"BLOB_URL: {self._root} cannot be created: {error.strerror}") from error

    def put(self, data: bytes) -> str:
        """See `Blobs`."""
        ref = reference_to(data)
        path = self._root / path_of(ref)
        try:
            if not _touched(path):
                with atomic_write(path) as file:
                    file.write(data)
            self._sync(path)
        except OSError as error:
            raise self._unavailable(error) from error
        return ref

    def spool(self) -> IO[bytes]:
        """See `Blobs`; on the same disk, so that keeping it copies nothing, and where `aged` clears up."""
        directory = self._root / "00" / "00"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            return tempfile.NamedTemporaryFile(dir=directory, prefix=".")
        except OSError as error:
            raise self._unavailable(error) from error

    def keep(self, spooled: IO[bytes], sha256: str) -> str:
        """See `Blobs`."""
        ref = reference(sha256)
        path = self._root / path_of(ref)
        try:
            spooled.flush()
            os.fsync(spooled.fileno())
            if not _touched(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileExistsError):
                    os.link(spooled.name, path)
            self._sync(path)
        except OSError as error:
            raise self._unavailable(error) from error
        return ref

    def get(self, ref: str) -> bytes:
        """See `Blobs`."""
        try:
            data = (self._root / path_of(ref)).read_bytes()
        except FileNotFoundError as error:
            raise missing(ref, str(self._root)) from error
        except OSError as error:
            raise self._unavailable(error) from error
        return verified(data, ref, str(self._root))

    def exists(self, ref: str) -> bool:
        """See `Blobs`."""
        try:
            return (self._root / path_of(ref)).exists()
        except OSError as error:
            raise self._unavailable(error) from error

    def aged(self, before: float) -> Iterator[Aged]:
        """See `Blobs`; clears up after itself and after writers that were killed."""
        try:
            for path in self._root.glob("??/??/*"):
                if path.name.endswith(_ORPHAN):
                    _restore(path)
                elif path.stat().st_mtime < before:
                    if _DIGEST.fullmatch(path.name):
                        ref = reference(path.name)
                        yield Aged(ref, path.stat().st_size, path_of(ref), before)
                    elif path.name.startswith("."):
                        path.unlink(missing_ok=True)
        except FileNotFoundError:  # somebody else clears up as well
            return
        except OSError as error:
            raise self._unavailable(error) from error

    def remove(self, aged: Aged) -> bool:
        """See `Blobs`.

        A writer that finds the bytes there touches them. So they are put aside first and looked at then: whoever came
        before that has touched them, and whoever comes later writes them anew.
        """
        path = self._root / aged.path
        aside = path.with_name(f".{path.name}{_ORPHAN}")
        try:
            os.replace(path, aside)
            if aside.stat().st_mtime >= aged.before:
                _restore(aside)
                return False
            aside.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._unavailable(error) from error
        return True

    def ping(self) -> None:
        """See `Blobs`; writes a block and removes it."""
        try:
            with tempfile.NamedTemporaryFile(dir=self._root, prefix=".ping-") as file:
                file.write(bytes(4096))
                file.flush()
        except OSError as error:
            raise self._unavailable(error) from error

    def _sync(self, path: Path) -> None:
        """Also when it was there: whoever wrote it may not have come this far, and "stored" is what we answer."""
        for directory in (path.parent, path.parent.parent, self._root):
            sync_directory(directory)

    def _unavailable(self, error: OSError) -> SinkUnavailable:
        return SinkUnavailable(f"the blob directory {self._root} does not work: {error.strerror}")


def _touched(path: Path) -> bool:
    """Whether it is there; `remove` sees that somebody needs it."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _restore(aside: Path) -> None:
    path = aside.with_name(aside.name[1:].removesuffix(_ORPHAN))
    if path.exists():
        aside.unlink(missing_ok=True)
    else:
        os.replace(aside, path)
