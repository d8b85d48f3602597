"""Store large contents outside Redis and the database, addressed by their SHA-256: on a local disk or in an S3 bucket.

A reference is `sha256:<hex>` in every store. Nothing is ever overwritten, and only `email-ingestion blobs collect` and
an erasure remove blobs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol

from email_ingestion.blobs.disk import DiskBlobStore
from email_ingestion.blobs.reference import OldBlob, reference, sha256_of
from email_ingestion.errors import ConfigurationError

__all__ = ["BlobStore", "DiskBlobStore", "OldBlob", "open_blobs", "reference", "sha256_of"]


class BlobStore(Protocol):
    """Keeps bytes under their reference. Every method raises SinkUnavailable when the store is down.

    A Protocol, because obstore, which `S3BlobStore` needs, is an extra.
    """

    def put(self, data: bytes) -> str:
        """Store `data` durably and return its reference; a repetition changes nothing."""

    def open_spool(self) -> IO[bytes]:
        """Open a temporary file for a content that is too large for memory; closing it deletes it."""

    def put_file(self, spooled: IO[bytes], sha256: str, *, replace: bool = False) -> str:
        """Store a spooled file with this hex digest durably; return its reference. A repetition changes nothing.

        `replace` writes it again: what is stored is known to be damaged.
        """

    def get(self, ref: str) -> bytes:
        """Return the bytes under `ref`. Raises ContentLost when they are missing or damaged."""

    def chunks(self, ref: str) -> Iterator[bytes]:
        """Yield the bytes under `ref`, about a megabyte at a time and unchecked. Raises ContentLost when missing."""

    def exists(self, ref: str) -> bool:
        """Tell whether bytes are stored under `ref`."""

    def stored_before(self, before: float) -> Iterator[OldBlob]:
        """Yield the blobs that were last stored before this Unix time."""

    def remove(self, blob: OldBlob) -> bool:
        """Remove a blob that nothing refers to, or move it aside; False when it was stored again since or is gone.

        A writer whose `put` returned meanwhile can always `get` its bytes.
        """

    def erase(self, ref: str, before: float) -> bool | None:
        """Remove the bytes under `ref`, also where they were moved aside; None when there are none.

        False when they were stored again since the Unix time `before`, or may have been found by a writer since.
        """

    def begin_anew(self) -> None:
        """Take an empty store for a new one: what it lacks is lost then, and not away."""

    def is_empty(self) -> bool:
        """Tell whether nothing was ever stored, or its disk is not mounted."""

    def ping(self) -> None:
        """Check that the store accepts a write now."""


def open_blobs(url: str) -> BlobStore:
    """Open the store at `file:<path>` (absolute or relative, not percent-encoded) or `s3://<bucket>/<prefix>`.

    S3 credentials, region and endpoint come from the usual environment (AWS_ACCESS_KEY_ID, …).
    Raises ConfigurationError when the URL is wrong or its store cannot be used.
    """
    scheme, _, rest = url.partition(":")
    if scheme == "file" and rest.removeprefix("//"):
        return DiskBlobStore(Path(rest.removeprefix("//")))
    if scheme == "s3" and rest.strip("/"):
        return _open_s3(url)
    raise ConfigurationError("BLOB_URL must be file:<directory> or s3://<bucket>/<prefix>")


def _open_s3(url: str) -> BlobStore:
    try:
        from email_ingestion.blobs.s3 import S3BlobStore  # noqa: PLC0415 - its import needs an extra
    except ImportError as error:
        raise ConfigurationError("BLOB_URL s3://… needs obstore: pip install 'email-ingestion[s3]'") from error
    return S3BlobStore(url)
