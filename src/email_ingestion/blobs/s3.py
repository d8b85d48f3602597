"""Blobs as objects in an S3 bucket, through obstore (the extra `s3`); the only speaker of obstore.

    ab/cd/<sha256>                  what was stored
    orphans/ab/cd/<sha256>/<uuid>   what a collector put aside, under a name that is written once

No bucket can remove an object on the condition that nobody came to need it since, so what nothing refers to is removed
in two steps, a grace apart: copied aside and taken away from its place; and, when the copy is as old as the grace and
still nothing refers to it, removed for good. A writer who finds an object in its place relies on it without a word.
Should a collector take it away just then, its copy is there, is found by `get`, and is young: a grace later the
writer's record is seen, and the copy stays for as long as that does. A writer who comes after it was taken away finds
nothing and writes it anew; copies it never relies on. Nor can collectors harm each other, as each names its own copies.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from typing import IO, TYPE_CHECKING
from uuid import uuid4

from obstore.exceptions import BaseError
from obstore.store import S3Store

from email_ingestion.blobs.reference import Aged, missing, path_of, reference, reference_to, verified
from email_ingestion.errors import ConfigurationError, SinkUnavailable

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, RetryConfig

# obstore's own patience is three minutes; behind a circuit breaker an answer is worth more.
_PATIENCE = timedelta(seconds=20)
_CLIENT: ClientConfig = {
    "timeout": _PATIENCE,
    "connect_timeout": timedelta(seconds=5),
    "allow_http": True,  # plain only where the operator's endpoint says http://, such as a MinIO next door
}
_RETRIES: RetryConfig = {"max_retries": 3, "retry_timeout": _PATIENCE}

_ASIDE = "orphans"
_OBJECT = re.compile(
    rf"(?P<aside>{_ASIDE}/)?[0-9a-f]{{2}}/[0-9a-f]{{2}}/(?P<sha256>[0-9a-f]{{64}})(?(aside)/[0-9a-f]{{32}})"
)

_ERRORS = (BaseError, OSError)  # obstore raises FileNotFoundError where S3 says 404


class S3Blobs:
    """See `Blobs`."""

    def __init__(self, url: str) -> None:
        self._url = url
        try:
            self._store = S3Store.from_url(url, client_options=_CLIENT, retry_config=_RETRIES)
        except BaseError as error:
            raise ConfigurationError(f"BLOB_URL {url} cannot be used: {_first_line(error)}") from error

    def put(self, data: bytes) -> str:
        """See `Blobs`."""
        ref = reference_to(data)
        if not self._in_place(ref):
            self._write(path_of(ref), data)
        return ref

    def spool(self) -> IO[bytes]:
        """See `Blobs`."""
        return tempfile.TemporaryFile()

    def keep(self, spooled: IO[bytes], sha256: str) -> str:
        """See `Blobs`; obstore sends it in parts."""
        ref = reference(sha256)
        if not self._in_place(ref):
            spooled.seek(0)
            try:
                self._store.put(path_of(ref), spooled)
            except _ERRORS as error:
                raise self._unavailable(error) from error
        return ref

    def get(self, ref: str) -> bytes:
        """See `Blobs`."""
        for path in self._places(ref):
            try:
                data = bytes(self._store.get(path).bytes())
            except FileNotFoundError:
                continue
            except _ERRORS as error:
                raise self._unavailable(error) from error
            return verified(data, ref, self._url)
        raise missing(ref, self._url)

    def exists(self, ref: str) -> bool:
        """See `Blobs`."""
        return self._in_place(ref) or any(self._listed(f"{_ASIDE}/{path_of(ref)}"))

    def aged(self, before: float) -> Iterator[Aged]:
        """See `Blobs`; what is in its place, and the copies put aside."""
        for found in self._listed():
            name = _OBJECT.fullmatch(found["path"])
            if name and found["last_modified"].timestamp() < before:
                yield Aged(reference(name["sha256"]), found["size"], found["path"], before, final=bool(name["aside"]))

    def remove(self, aged: Aged) -> bool:
        """See `Blobs`; the first step or the second of what this module's docstring describes."""
        try:
            if not aged.final:
                self._store.copy(aged.path, f"{_ASIDE}/{aged.path}/{uuid4().hex}")
            self._store.delete(aged.path)
        except FileNotFoundError:
            return False
        except _ERRORS as error:
            raise self._unavailable(error) from error
        return True

    def _in_place(self, ref: str) -> bool:
        """Whether it is there to stay as long as something refers to it, which a copy that was put aside is not."""
        try:
            self._store.head(path_of(ref))
        except FileNotFoundError:
            return False
        except _ERRORS as error:
            raise self._unavailable(error) from error
        return True

    def ping(self) -> None:
        """See `Blobs`; writes an object `.ping`, because that is the permission we need."""
        self._write(".ping", b"")

    def _places(self, ref: str) -> Iterator[str]:
        yield path_of(ref)
        yield from (found["path"] for found in self._listed(f"{_ASIDE}/{path_of(ref)}"))

    def _listed(self, below: str | None = None) -> Iterator[ObjectMeta]:
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
