"""Large bytes outside Redis and the database, addressed by their content: on a local disk or in an S3 bucket.

A reference is `sha256:<hex>`, the same wherever the bytes lie. Nothing is ever overwritten, and only `collect` removes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol

from email_ingestion.blobs.disk import DiskBlobs
from email_ingestion.blobs.reference import Aged, reference, sha256_of
from email_ingestion.errors import ConfigurationError

__all__ = ["Aged", "Blobs", "DiskBlobs", "open_blobs", "reference", "sha256_of"]


class Blobs(Protocol):
    """Keeps bytes under their reference. Every method raises SinkUnavailable when the store itself does not work."""

    def put(self, data: bytes) -> str:
        """Store `data`, durably when it returns, and return its reference; twice is the same as once."""

    def spool(self) -> IO[bytes]:
        """Return a file to write a content into that is too large for memory; it is gone when it is closed."""

    def keep(self, spooled: IO[bytes], sha256: str) -> str:
        """Store what was spooled, which has this digest, durably; return its reference. Twice is the same as once."""

    def get(self, ref: str) -> bytes:
        """Return the bytes under `ref`; raises TransientError when they are missing or damaged."""

    def exists(self, ref: str) -> bool:
        """Tell whether there are bytes under `ref`."""

    def aged(self, before: float) -> Iterator[Aged]:
        """What was stored, or stored again, last before this Unix time."""

    def remove(self, aged: Aged) -> bool:
        """Remove what nothing refers to, or put it aside; False when it was stored again since, or is gone already.

        However a writer comes in between, what it was told to be stored can be got.
        """

    def ping(self) -> None:
        """Return when the store takes a write now."""


def open_blobs(url: str) -> Blobs:
    """Open the store at `file:<path>` (absolute or relative, not percent-encoded) or `s3://<bucket>/<prefix>`.

    S3 credentials, region and endpoint come from where every S3 client looks (AWS_ACCESS_KEY_ID, …).
    Raises ConfigurationError when `url` or what stands behind it is unusable.
    """
    scheme, _, rest = url.partition(":")
    if scheme == "file" and rest.removeprefix("//"):
        return DiskBlobs(Path(rest.removeprefix("//")))
    if scheme == "s3" and rest.strip("/"):
        return _open_s3(url)
    raise ConfigurationError("BLOB_URL must be file:<directory> or s3://<bucket>/<prefix>")


def _open_s3(url: str) -> Blobs:
    try:
        from email_ingestion.blobs.s3 import S3Blobs  # noqa: PLC0415 - its import needs an extra
    except ImportError as error:
        raise ConfigurationError("BLOB_URL s3://… needs obstore: pip install 'email-ingestion[s3]'") from error
    return S3Blobs(url)
