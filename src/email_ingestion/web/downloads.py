"""Files that come from mail, as answers of the web process: always saved, never shown, under a name that is harmless.

A browser that opened one in the page would let its sender act as the person who looks at it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import chain
from urllib.parse import quote

from fastapi.responses import Response, StreamingResponse

from email_ingestion.blobs import BlobStore
from email_ingestion.ledger.store import Ledger

MAX_NAME = 150  # characters; file systems take 255 bytes
# What a browser or a desktop would not run when the file is opened; everything else is bytes.
HARMLESS_TYPES = frozenset(
    [
        *("application/pdf", "application/zip", "application/json", "message/rfc822", "text/plain", "text/csv"),
        *("image/png", "image/jpeg", "image/gif", "image/webp", "text/calendar"),
        *("application/vnd.openxmlformats-officedocument.wordprocessingml.document", "application/msword"),
        *("application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", "application/vnd.ms-excel"),
    ]
)
_DEVICES = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def content_chunks(ref: str, ledger: Ledger, blobs: BlobStore) -> Iterator[bytes]:
    """Return the bytes under a reference, in parts; the first is read before this returns.

    Raises the errors of `BlobStore.get`; ContentLost, when they are missing, before anything is answered.
    """
    inside = ledger.content(ref)
    if inside is not None:
        return iter([inside])
    parts = blobs.chunks(ref)
    return chain([next(parts, b"")], parts)


def download(chunks: Iterator[bytes], name: str | None, content_type: str, size: int | None, fallback: str) -> Response:
    """Answer with a file to be saved; `fallback` is its name where it has none."""
    kind = content_type.lower() if content_type.lower() in HARMLESS_TYPES else "application/octet-stream"
    headers = _HEADERS | {"Content-Disposition": disposition(safe_name(name or "", fallback))}
    if size is not None:
        headers["Content-Length"] = str(size)
    # A charset would be guessed for text: the bytes are the sender's, as they came.
    return StreamingResponse(chunks, headers=headers | {"Content-Type": kind})


def safe_name(name: str, fallback: str) -> str:
    """Return a file name without folders, control characters, bidirectional tricks and names of devices."""
    last = re.split(r"[/\\]", unicodedata.normalize("NFC", name))[-1]
    kept = "".join("_" if each in '<>:"|?*' else each for each in last if each.isprintable())
    kept = re.sub(r"\s+", " ", kept).strip(". ")
    if len(kept) > MAX_NAME:
        stem, dot, ending = kept.rpartition(".")
        ending = ending[:20] if dot else ""
        kept = f"{(stem or kept)[: MAX_NAME - len(ending) - 1]}{dot}{ending}"
    return fallback if not kept or _DEVICES.fullmatch(kept) else kept


def disposition(name: str) -> str:
    """Return the header field for a file of this name (RFC 6266)."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^\w .()+,=@-]", "_", plain).strip(". ") or "file"
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
