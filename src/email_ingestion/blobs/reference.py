"""References to stored bytes (`sha256:<hex>`), their path in a store, and the check of the bytes."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from email_ingestion.errors import ContentLost, TransientError

REMEDY = "`email-ingestion blobs verify` fetches it again"
_REFERENCE = re.compile("sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class OldBlob:
    """A blob that was last stored before a Unix time."""

    ref: str
    size: int
    path: str  # in the store
    before: float
    final: bool = True  # False: `remove` moves it aside first


def reference(sha256: str) -> str:
    """Return the reference of the bytes with this hex digest."""
    return f"sha256:{sha256}"


def reference_to(data: bytes) -> str:
    """Return the reference of `data`."""
    return reference(hashlib.sha256(data).hexdigest())


def sha256_of(ref: str) -> str:
    """Return the hex digest in `ref`. Raises TransientError for any other text: no store of ours has written it."""
    match = _REFERENCE.fullmatch(ref)
    if match is None:
        raise TransientError(f"{ref!r} is not a reference to stored bytes")
    return match[1]


def path_of(ref: str) -> str:
    """Return the relative path, with two levels of directories: one with millions of files is slow to list."""
    sha256 = sha256_of(ref)
    return f"{sha256[:2]}/{sha256[2:4]}/{sha256}"


def verify(data: bytes, ref: str, where: str) -> bytes:
    """Return `data` if its digest is that of `ref`. Raises ContentLost otherwise."""
    if reference_to(data) != ref:
        raise ContentLost(f"{ref} in {where} is damaged; {REMEDY}")
    return data


def missing_error(ref: str, where: str) -> ContentLost:
    """Make the error for missing bytes; its usual cause is a store that the hosts do not share."""
    return ContentLost(f"{ref} is not in {where}; BLOB_URL must name one store that all hosts share; {REMEDY}")
