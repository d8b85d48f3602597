"""Undo transfer encodings (RFC 2045, section 6), also damaged ones: no byte of a part is lost without a defect.

Opaque S/MIME is unwrapped here, too.
"""

from __future__ import annotations

import binascii
import re
import zlib
from collections.abc import Iterator
from typing import Any, Final

import pybase64

from email_ingestion.parsing import limits
from email_ingestion.parsing.defects import Defect, Defects

IDENTITY: Final = frozenset({"", "7bit", "8bit", "binary"})
UUENCODE: Final = frozenset({"x-uuencode", "uuencode", "uue", "x-uue"})
ENCODINGS: Final = IDENTITY | UUENCODE | {"base64", "quoted-printable"}

_SPACE: Final = b" \t\r\n"
_NOT_BASE64: Final = re.compile(rb"[^A-Za-z0-9+/=]+")
_PADDED: Final = re.compile(rb"([A-Za-z0-9+/]+)=*")
_MAX_STRAY_SHARE: Final = 0.1  # of a line may be signs that are not base64 before the line counts as text
# RFC 2045, section 6.7: white space behind a soft line break was added on the way.
_PADDED_SOFT_BREAK: Final = re.compile(rb"=[ \t]+(?=\r?\n|\Z)")
# binascii skips everything from here to the next LF.
_BARE_CR: Final = re.compile(rb"=\r++(?!\n)")
_UU_BEGIN: Final = re.compile(rb"^begin [0-7]{3,4} [^\r\n]*\r?\n", re.MULTILINE)
_UU_LINE_BYTES: Final = 45
SMIME: Final = frozenset({"application/pkcs7-mime", "application/x-pkcs7-mime"})
_MAX_CMS_DEPTH: Final = 5  # compressed in signed in …


def decode(data: bytes, encoding: str, defects: Defects) -> bytes:
    """Return the decoded bytes; of an unknown encoding the bytes as they are."""
    if encoding == "base64":
        return _decode_base64(data, defects)
    if encoding == "quoted-printable":
        return _decode_quoted_printable(data, defects)
    if encoding in UUENCODE:
        return _decode_uuencoded_part(data, defects)
    return data


def _decode_base64(data: bytes, defects: Defects) -> bytes:
    try:
        return pybase64.b64decode(data.translate(None, _SPACE), validate=True)
    except binascii.Error:
        defects.note(Defect.TRANSFER_INVALID)
    lines = [line for line in map(bytes.strip, data.splitlines()) if line]
    kept = [_NOT_BASE64.sub(b"", line) for line in lines if _is_base64_line(line)]
    begins = bool(lines) and _is_base64_line(lines[0]) and len(lines[0]) % 4 == 0
    if not begins and 2 * sum(map(len, kept)) < sum(map(len, lines)):
        return data  # it is text with a wrong label
    return _decode_damaged_base64(b"".join(kept))


def _is_base64_line(line: bytes) -> bool:
    """Tell base64 with a few stray signs from text, such as the footer of a mailing list."""
    stray = sum(map(len, _NOT_BASE64.findall(line)))
    return stray == 0 or (stray <= len(line) * _MAX_STRAY_SHARE and b" " not in line)


def _decode_damaged_base64(data: bytes) -> bytes:
    """Decode what is without padding, cut off, or joined of several encodings with padding between them."""
    found = (match[1] for match in _PADDED.finditer(data))
    return b"".join(binascii.a2b_base64(piece[: len(piece) - (len(piece) % 4 == 1)] + b"===") for piece in found)


def _decode_quoted_printable(data: bytes, defects: Defects) -> bytes:
    """Keep raw bytes above 127 and controls, which the RFC forbids, and sequences that encode nothing.

    The tests before the two repairs are cheap ones; a CR alone is told by the counts of the two characters.
    """
    returns = data.count(b"\r")
    if (b"= \r\n" if returns else b"= \n") in data or data.endswith((b"= ", b"=\t")):
        data = _PADDED_SOFT_BREAK.sub(b"=", data)
        defects.note(Defect.TRANSFER_INVALID)
    if returns and returns != data.count(b"\n") and _BARE_CR.search(data):
        data = _BARE_CR.sub(b"", data)
        defects.note(Defect.TRANSFER_INVALID)
    return binascii.a2b_qp(data)


def _decode_uuencoded_part(data: bytes, defects: Defects) -> bytes:
    begin = _UU_BEGIN.search(data)
    if begin is None:
        defects.note(Defect.TRANSFER_INVALID)
        return data
    content, _ = decode_uuencoded(data, begin.end(), defects)
    return content


def decode_uuencoded(data: bytes, start: int, defects: Defects) -> tuple[bytes, int]:
    """Decode the lines from `start` to the one that says "end"; return the bytes and the offset behind it."""
    decoded: list[bytes] = []
    end = start
    for line, end in iter_lines(data, start):
        if line == b"end":
            return b"".join(decoded), end
        try:
            decoded.append(decode_uuencoded_line(line))
        except binascii.Error:
            defects.note(Defect.TRANSFER_INVALID)
    defects.note(Defect.TRANSFER_INVALID)
    return b"".join(decoded), end


def iter_lines(data: bytes, start: int) -> Iterator[tuple[bytes, int]]:
    """Yield each line without its end and its trailing white space, and the offset behind it."""
    while start < len(data):
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end + 1
        yield data[start:end].rstrip(b"\r\n"), end
        start = end


def decode_uuencoded_line(line: bytes) -> bytes:
    """Decode one line; raises binascii.Error."""
    try:
        return binascii.a2b_uu(line)
    except binascii.Error:  # more signs than the length says, as some encoders pad: the standard library's remedy
        length = (((line[0] - 32) & 63) * 4 + 5) // 3
        return binascii.a2b_uu(line[:length])


def unwrap_smime(content: bytes) -> bytes | None:
    """Return the MIME entity inside opaque S/MIME (RFC 8551, sections 3.2 and 3.5); None when it is encrypted.

    No signature is verified: the record says what is written, not who wrote it. Raises ValueError for damaged data.
    """
    from asn1crypto import cms  # noqa: PLC0415 - 10 MB for what few messages have

    if len(content) > limits.SMIME_BYTES:
        return None
    try:
        info = cms.ContentInfo.load(content)
        return _cms_content(info["content_type"].native, info["content"], 0)
    except (ValueError, TypeError, KeyError, RecursionError, zlib.error) as error:
        raise ValueError("damaged CMS data") from error


def _cms_content(kind: str, value: Any, depth: int) -> bytes | None:
    if kind not in {"signed_data", "compressed_data"} or depth >= _MAX_CMS_DEPTH:
        return None
    inner = value["encap_content_info"]
    data = inner["content"].native
    if data is None:
        return None
    if kind == "compressed_data":
        data = zlib.decompressobj().decompress(data, limits.SMIME_BYTES)
    return data if isinstance(data, bytes) else None
