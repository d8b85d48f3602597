"""Open opaque S/MIME (RFC 8551, sections 3.2 and 3.5): the message inside signed or compressed data, never encrypted.

No signature is verified: the record says what is written, not who wrote it.
"""

from __future__ import annotations

import zlib
from typing import Any, Final

from email_ingestion.parsing import limits

TYPES: Final = frozenset({"application/pkcs7-mime", "application/x-pkcs7-mime"})
_MAX_DEPTH: Final = 5  # compressed in signed in …


def unwrap(content: bytes) -> bytes | None:
    """Return the MIME entity inside, None when it is encrypted or there is none. Raises ValueError for damaged data."""
    from asn1crypto import cms  # noqa: PLC0415 - 10 MB for what few messages have

    if len(content) > limits.SMIME_BYTES:
        return None
    try:
        info = cms.ContentInfo.load(content)
        return _content(info["content_type"].native, info["content"], 0)
    except (ValueError, TypeError, KeyError, RecursionError, zlib.error) as error:
        raise ValueError("damaged CMS data") from error


def _content(kind: str, value: Any, depth: int) -> bytes | None:
    if kind not in {"signed_data", "compressed_data"} or depth >= _MAX_DEPTH:
        return None
    inner = value["encap_content_info"]
    data = inner["content"].native
    if data is None:
        return None
    if kind == "compressed_data":
        data = zlib.decompressobj().decompress(data, limits.SMIME_BYTES)
    return data if isinstance(data, bytes) else None
