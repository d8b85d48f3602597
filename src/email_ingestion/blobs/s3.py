"""Store blobs as objects in an S3 bucket through obstore (the extra `s3`).

    ab/cd/<sha256>                  a stored blob
    orphans/ab/cd/<sha256>/<uuid>   a blob that a collector moved aside, under a name that is written once

S3 cannot delete an object on the condition that nobody needs it since, so a collector deletes in two steps, with a
grace period between them. It moves an unreferenced blob to `orphans/`; when that copy is older than the grace period
and still unreferenced, it deletes the copy.

A writer that finds a blob in its place does not write it again. If a collector moves the blob just then, `get` finds
the copy, which is young: at the end of the grace period the collector sees the writer's record and keeps the copy. A
writer that comes after the move writes the blob again; writers never rely on copies. Collectors cannot harm each
other, because each copy has its own name.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import IO, TYPE_CHECKING
from uuid import uuid4

from obstore.exceptions import BaseError
from obstore.store import S3Store

from email_ingestion.blobs.reference import OldBlob, missing_error, path_of, reference, reference_to, verify
from email_ingestion.errors import ConfigurationError, SinkUnavailable
from email_ingestion.settings import mask_url

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, RetryConfig

# obstore's own patience is three minutes; behind a circuit breaker an answer is worth more.
_TIMEOUT = timedelta(seconds=20)
_CLIENT: ClientConfig = {
    "timeout": _TIMEOUT,
    "connect_timeout": timedelta(seconds=5),
    "allow_http": True,  # plain only where the operator's endpoint says http://, such as a MinIO next door
}
_RETRIES: RetryConfig = {"max_retries": 3, "retry_timeout": _TIMEOUT}

_CHUNK_BYTES = 1024 * 1024
_ORPHANS = "orphans"
_OBJECT = re.compile(
    rf"(?P<aside>{_ORPHANS}/)?[0-9a-f]{{2}}/[0-9a-f]{{2}}/(?P<sha256>[0-9a-f]{{64}})(?(aside)/[0-9a-f]{{32}})"
)

_ERRORS = (BaseError, OSError)  # obstore raises FileNotFoundError where S3 says 404


class S3BlobStore:
    """A blob store in an S3 bucket."""

    def __init__(self, url: str) -> None:
        self._url = mask_url(url)  # for messages
        try:
            self._store = S3Store.from_url(url, client_options=_CLIENT, retry_config=_RETRIES)
        except BaseError as error:
            raise ConfigurationError(
                f"BLOB_URL {self._url} cannot be used: {_first_line(error).replace(url, self._url)}"
            ) from error

    def put(self, data: bytes) -> str:
        """Write the object unless it is there."""
        ref = reference_to(data)
        if not self._is_stored(ref):
            self._write(path_of(ref), data)
        return ref

    def open_spool(self) -> IO[bytes]:
        """Open a temporary file on the local disk."""
        return tempfile.TemporaryFile()

    def put_file(self, spooled: IO[bytes], sha256: str, *, replace: bool = False) -> str:
        """Upload the spooled file in parts unless the object is there."""
        ref = reference(sha256)
        if replace or not self._is_stored(ref):
            spooled.seek(0)
            try:
                self._store.put(path_of(ref), spooled)
            except _ERRORS as error:
                raise self._unavailable(error) from error
        return ref

    def get(self, ref: str) -> bytes:
        """Read the object, or a copy that was moved aside, and verify its digest."""
        for path in self._candidate_paths(ref):
            try:
                data = bytes(self._store.get(path).bytes())
            except FileNotFoundError:
                continue
            except _ERRORS as error:
                raise self._unavailable(error) from error
            return verify(data, ref, self._url)
        raise missing_error(ref, self._url)

    def chunks(self, ref: str) -> Iterator[bytes]:
        """Yield the bytes of the object, or of a copy that was moved aside."""
        for path in self._candidate_paths(ref):
            try:
                for chunk in self._store.get(path).stream(min_chunk_size=_CHUNK_BYTES):
                    yield bytes(chunk)
            except FileNotFoundError:
                continue
            except _ERRORS as error:
                raise self._unavailable(error) from error
            return
        raise missing_error(ref, self._url)

    def exists(self, ref: str) -> bool:
        """Tell whether the object exists, or a copy that was moved aside."""
        return self._is_stored(ref) or any(self._list(f"{_ORPHANS}/{path_of(ref)}"))

    def stored_before(self, before: float) -> Iterator[OldBlob]:
        """Yield old blobs: those in their place, and the copies that were moved aside."""
        for found in self._list():
            name = _OBJECT.fullmatch(found["path"])
            if name and found["last_modified"].timestamp() < before:
                yield OldBlob(
                    reference(name["sha256"]), found["size"], found["path"], before, final=bool(name["aside"])
                )

    def remove(self, blob: OldBlob) -> bool:
        """Move the blob aside, or delete a copy that was moved aside: the two steps in this module's docstring."""
        try:
            if not blob.final:
                self._store.copy(blob.path, f"{_ORPHANS}/{blob.path}/{uuid4().hex}")
            self._store.delete(blob.path)
        except FileNotFoundError:
            return False
        except _ERRORS as error:
            raise self._unavailable(error) from error
        return True

    def erase(self, ref: str, before: float) -> bool | None:
        """Move the object aside, and delete what was moved aside before `before`: a writer may have found it in place.

        Older versions stay where the bucket keeps them.
        """
        if self._is_stored(ref):
            self.remove(OldBlob(ref, 0, path_of(ref), before, final=False))
        copies = list(self._list(f"{_ORPHANS}/{path_of(ref)}"))
        old = [each["path"] for each in copies if each["last_modified"].timestamp() < before]
        try:
            for path in old:
                with suppress(FileNotFoundError):
                    self._store.delete(path)
        except _ERRORS as error:
            raise self._unavailable(error) from error
        return len(old) == len(copies) if copies else None

    def _is_stored(self, ref: str) -> bool:
        """Tell whether the object is in its place; a copy that was moved aside does not count."""
        try:
            self._store.head(path_of(ref))
        except FileNotFoundError:
            return False
        except _ERRORS as error:
            raise self._unavailable(error) from error
        return True

    def begin_anew(self) -> None:
        """Do nothing: a bucket that answers is there."""

    def is_empty(self) -> bool:
        """Return False: a bucket that answers is there."""
        return False

    def ping(self) -> None:
        """Write the object `.ping`, which needs the same permission as a blob."""
        self._write(".ping", b"")

    def _candidate_paths(self, ref: str) -> Iterator[str]:
        yield path_of(ref)
        yield from (found["path"] for found in self._list(f"{_ORPHANS}/{path_of(ref)}"))

    def _list(self, below: str | None = None) -> Iterator[ObjectMeta]:
        try:
            for page in self._store.list(below):
                yield from page
        except _ERRORS as error:
            raise self._unavailable(error) from error

    def _write(self, path: str, data: bytes) -> None:
        try:
            self._store.put(path, data)
        except _ERRORS as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> SinkUnavailable:
        return SinkUnavailable(f"the blob store {self._url} does not work: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]  # what follows is obstore's debug output
