"""What a reference is, where its bytes lie in a store, how long they have, and whether they are the right ones."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from email_ingestion.errors import TransientError

_REFERENCE = re.compile("sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Aged:
    """Bytes that were stored, or stored again, last before a Unix time; not `final`: removing them puts them aside."""

    ref: str
    size: int
    path: str  # in the store
    before: float
    final: bool = True


def reference(sha256: str) -> str:
    """Return the reference of the bytes with this hex digest."""
    return f"sha256:{sha256}"


def reference_to(data: bytes) -> str:
    """Return the reference of `data`."""
    return reference(hashlib.sha256(data).hexdigest())


def sha256_of(ref: str) -> str:
    """Return the hex digest in `ref`; raises TransientError for anything else, which no store of ours has written."""
    match = _REFERENCE.fullmatch(ref)
    if match is None:
        raise TransientError(f"{ref!r} is not a reference to stored bytes")
    return match[1]


def path_of(ref: str) -> str:
    """Return the relative path; two levels, because a directory of millions is slow to list and to back up."""
    sha256 = sha256_of(ref)
    return f"{sha256[:2]}/{sha256[2:4]}/{sha256}"


def verified(data: bytes, ref: str, where: str) -> bytes:
    """Return `data` if it is what `ref` says; raises TransientError otherwise."""
    if reference_to(data) != ref:
        raise TransientError(f"{ref} in {where} is damaged; restore it from a backup")
    return data


def missing(ref: str, where: str) -> TransientError:
    """Return the error for bytes that are not there: most often a store that the hosts do not share."""
    return TransientError(f"{ref} is not in {where}; BLOB_URL must name one store that all hosts share")
