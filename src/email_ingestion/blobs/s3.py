"""Blobs as objects in an S3 bucket, through obstore (the extra `s3`); the only speaker of obstore."""

from __future__ import annotations

import tempfile
from datetime import timedelta
from typing import IO, TYPE_CHECKING

from obstore.exceptions import BaseError
from obstore.store import S3Store

from email_ingestion.blobs.reference import missing, path_of, reference, reference_to, verified
from email_ingestion.errors import ConfigurationError, SinkUnavailable

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

# obstore's own patience is three minutes; behind a circuit breaker an answer is worth more.
_PATIENCE = timedelta(seconds=20)
_CLIENT: ClientConfig = {
    "timeout": _PATIENCE,
    "connect_timeout": timedelta(seconds=5),
    "allow_http": True,  # plain only where the operator's endpoint says http://, such as a MinIO next door
}
_RETRIES: RetryConfig = {"max_retries": 3, "retry_timeout": _PATIENCE}

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
        if not self.exists(ref):
            self._write(path_of(ref), data)
        return ref

    def spool(self) -> IO[bytes]:
        """See `Blobs`."""
        return tempfile.TemporaryFile()

    def keep(self, spooled: IO[bytes], sha256: str) -> str:
        """See `Blobs`; obstore sends it in parts."""
        ref = reference(sha256)
        if not self.exists(ref):
            spooled.seek(0)
            try:
                self._store.put(path_of(ref), spooled)
            except _ERRORS as error:
                raise self._unavailable(error) from error
        return ref

    def get(self, ref: str) -> bytes:
        """See `Blobs`."""
        try:
            data = bytes(self._store.get(path_of(ref)).bytes())
        except FileNotFoundError as error:
            raise missing(ref, self._url) from error
        except _ERRORS as error:
            raise self._unavailable(error) from error
        return verified(data, ref, self._url)

    def exists(self, ref: str) -> bool:
        """See `Blobs`."""
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

    def _write(self, path: str, data: bytes) -> None:
        try:
            self._store.put(path, data)
        except _ERRORS as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> SinkUnavailable:
        return SinkUnavailable(f"the blob store {self._url} does not work: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]  # what follows is obstore's debug output
