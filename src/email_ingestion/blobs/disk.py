"""Blobs as files in a directory, each under its name only when it is complete and on the disk."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from email_ingestion.blobs.reference import missing, path_of, reference_to, verified
from email_ingestion.errors import ConfigurationError, SinkUnavailable


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
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                _write(path, data)
            # Also when it was there: whoever wrote it may not have come this far, and "stored" is what we answer.
            for directory in (path.parent, path.parent.parent, self._root):
                _sync_directory(directory)
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

    def ping(self) -> None:
        """See `Blobs`; writes a block and removes it."""
        try:
            with tempfile.NamedTemporaryFile(dir=self._root, prefix=".ping-") as file:
                file.write(bytes(4096))
                file.flush()
        except OSError as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: OSError) -> SinkUnavailable:
        return SinkUnavailable(f"the blob directory {self._root} does not work: {error.strerror}")


def _write(path: Path, data: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _sync_directory(directory: Path) -> None:
    if os.name == "nt":  # NTFS journals names, and Windows opens no directory
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
