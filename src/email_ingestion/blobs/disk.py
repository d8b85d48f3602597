"""Store blobs as files in a directory; a file gets its final name only when it is complete and synced."""

from __future__ import annotations

import os
import re
import tempfile
import threading
from collections.abc import Iterator
from errno import ENOENT
from pathlib import Path
from typing import IO

from email_ingestion.atomic_files import atomic_write, sync_directory
from email_ingestion.blobs.reference import OldBlob, missing_error, path_of, reference, reference_to, verify
from email_ingestion.errors import ConfigurationError, SinkUnavailable

_ORPHAN = "-orphan"
_DIGEST = re.compile("[0-9a-f]{64}")
_CHUNK_BYTES = 1024 * 1024
_IF_LOST = " If all of it is lost: email-ingestion blobs verify --refill"


class DiskBlobStore:
    """A blob store in a local directory."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"BLOB_URL: {self._root} cannot be created: {error.strerror}") from error

    def put(self, data: bytes) -> str:
        """Write the file, or touch the one that is there, and sync it. One of another size is damaged: replace it."""
        ref = reference_to(data)
        path = self._root / path_of(ref)
        try:
            self._require_root()
            if not _touch(path) or path.stat().st_size != len(data):
                with atomic_write(path) as file:
                    file.write(data)
            self._sync(path)
        except OSError as error:
            raise self._unavailable(error) from error
        return ref

    def open_spool(self) -> IO[bytes]:
        """Open a temporary file on the same disk, so that `put_file` only links it."""
        directory = self._root / "00" / "00"
        try:
            self._require_root()
            directory.mkdir(parents=True, exist_ok=True)
            return tempfile.NamedTemporaryFile(dir=directory, prefix=".")
        except OSError as error:
            raise self._unavailable(error) from error

    def put_file(self, spooled: IO[bytes], sha256: str, *, replace: bool = False) -> str:
        """Sync the spooled file and link it under its final name."""
        ref = reference(sha256)
        path = self._root / path_of(ref)
        try:
            spooled.flush()
            os.fsync(spooled.fileno())
            size = os.fstat(spooled.fileno()).st_size
            if replace or not _touch(path) or path.stat().st_size != size:
                path.parent.mkdir(parents=True, exist_ok=True)
                _link(spooled.name, path)
            self._sync(path)
        except OSError as error:
            raise self._unavailable(error) from error
        return ref

    def get(self, ref: str) -> bytes:
        """Read the file and verify its digest."""
        try:
            data = (self._root / path_of(ref)).read_bytes()
        except FileNotFoundError as error:
            self._require_blobs()
            raise missing_error(ref, str(self._root)) from error
        except OSError as error:
            raise self._unavailable(error) from error
        return verify(data, ref, str(self._root))

    def chunks(self, ref: str) -> Iterator[bytes]:
        """Yield the bytes of the file."""
        try:
            with (self._root / path_of(ref)).open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    yield chunk
        except FileNotFoundError as error:
            self._require_blobs()
            raise missing_error(ref, str(self._root)) from error
        except OSError as error:
            raise self._unavailable(error) from error

    def exists(self, ref: str) -> bool:
        """Tell whether the file exists."""
        try:
            (self._root / path_of(ref)).stat()  # `exists` takes a directory that may not be entered for an empty one
        except FileNotFoundError:
            self._require_blobs()
            return False
        except OSError as error:
            raise self._unavailable(error) from error
        return True

    def stored_before(self, before: float) -> Iterator[OldBlob]:
        """Yield old blobs; restore orphans of a killed `remove`, and delete old temporary files of killed writers."""
        try:
            for path in self._root.glob("??/??/*"):
                if path.name.endswith(_ORPHAN):
                    _restore(path)
                elif path.stat().st_mtime < before:
                    if _DIGEST.fullmatch(path.name):
                        ref = reference(path.name)
                        yield OldBlob(ref, path.stat().st_size, path_of(ref), before)
                    elif path.name.startswith("."):
                        path.unlink(missing_ok=True)
        except FileNotFoundError:  # another process cleans up as well
            return
        except OSError as error:
            raise self._unavailable(error) from error

    def remove(self, blob: OldBlob) -> bool:
        """Move the file aside, then check its time, then delete it.

        A writer touches a file that it finds. So a writer that came before the move has touched the file, which is
        then restored, and a writer that comes after the move writes the bytes again.
        """
        path = self._root / blob.path
        orphan = path.with_name(f".{path.name}{_ORPHAN}")
        try:
            os.replace(path, orphan)
            if orphan.stat().st_mtime >= blob.before:
                _restore(orphan)
                return False
            orphan.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._unavailable(error) from error
        return True

    def erase(self, ref: str, before: float) -> bool | None:
        """Remove the file like `remove`, and what a killed `remove` left."""
        path = self._root / path_of(ref)
        orphan = path.with_name(f".{path.name}{_ORPHAN}")
        try:
            self._require_root()
            if orphan.exists():
                _restore(orphan)
            self.remove(OldBlob(ref, path.stat().st_size, path_of(ref), before))
            sync_directory(path.parent)
        except FileNotFoundError:
            self._require_blobs()
            return None
        except OSError as error:
            raise self._unavailable(error) from error
        return not path.exists()

    def ping(self) -> None:
        """Write a block and remove it."""
        try:
            with tempfile.NamedTemporaryFile(dir=self._root, prefix=".ping-") as file:
                file.write(bytes(4096))
                file.flush()
        except OSError as error:
            raise self._unavailable(error) from error

    def _require_root(self) -> None:
        """Raise FileNotFoundError where the directory is gone: made anew, it would hide that all blobs are."""
        if not self._root.is_dir():
            raise FileNotFoundError(ENOENT, "it is not there; is its disk mounted?")

    def _require_blobs(self) -> None:
        """Raise SinkUnavailable where there is no blob at all: who asks for one knows of one that was stored."""
        try:
            self._require_root()
            if not any(self._root.glob("??")):  # a directory stays when its blobs are collected
                raise FileNotFoundError(ENOENT, "it is empty; is its disk mounted, does BLOB_URL name it?" + _IF_LOST)
        except OSError as error:
            raise self._unavailable(error) from error

    def begin_anew(self) -> None:
        """Make the directory with a first one in it, as a collected store has."""
        try:
            (self._root / "00").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unavailable(error) from error

    def is_empty(self) -> bool:
        """Tell whether it holds nothing, not even the directories that collected blobs leave."""
        try:
            return not any(self._root.glob("??"))
        except OSError as error:
            raise self._unavailable(error) from error

    def _sync(self, path: Path) -> None:
        """Sync the directories, also of a file that was there: its writer may have been killed before this point."""
        for directory in (path.parent, path.parent.parent, self._root):
            sync_directory(directory)

    def _unavailable(self, error: OSError) -> SinkUnavailable:
        return SinkUnavailable(f"the blob directory {self._root} does not work: {error.strerror}")


def _touch(path: Path) -> bool:
    """Set the file's time to now, so that `remove` keeps it; False when there is none."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _link(spooled: str, path: Path) -> None:
    """Give the spooled file its final name in one step, whatever has that name now."""
    draft = path.with_name(f".{path.name}-{os.getpid()}-{threading.get_ident()}")
    draft.unlink(missing_ok=True)  # of a process that was killed here
    os.link(spooled, draft)
    os.replace(draft, path)
    draft.unlink(missing_ok=True)  # rename(2) leaves it where both are the same file already


def _restore(orphan: Path) -> None:
    path = orphan.with_name(orphan.name[1:].removesuffix(_ORPHAN))
    if path.exists():
        orphan.unlink(missing_ok=True)
    else:
        os.replace(orphan, path)
