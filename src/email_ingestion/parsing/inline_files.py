"""Take files out of plain text: uuencoded between "begin" and "end", and yEnc between "=ybegin" and "=yend"."""

from __future__ import annotations

import binascii
import re
from typing import Final, NamedTuple

from email_ingestion.parsing import charsets, limits
from email_ingestion.parsing.defects import Defect, Defects
from email_ingestion.parsing.transfer import decode_uuencoded_line, iter_lines

_BEGIN: Final = re.compile(
    rb"^(?:begin [0-7]{3,4} +(?P<uu>[^\r\n]{1,500})|=ybegin (?P<yenc>[^\r\n]{1,500}))\r?\n", re.MULTILINE
)
_UU_LINE: Final = re.compile(rb"[\x20-\x60]{1,90}")
_YENC_END: Final = re.compile(rb"^=yend([^\r\n]*)(?:\r?\n|\Z)", re.MULTILINE)
_YENC_PART: Final = re.compile(rb"=ypart [^\r\n]*\r?\n")
_YENC_NAME: Final = re.compile(rb"\bname=(.*)")
_YENC_SIZE: Final = re.compile(rb"\bsize=([0-9]{1,12})\b")
_YENC_ESCAPED: Final = re.compile(rb"=(.)", re.DOTALL)
_MINUS_42: Final = bytes((byte - 42) & 0xFF for byte in range(256))


class InlineFile(NamedTuple):
    """One file of a text."""

    filename: str
    content: bytes


def extract(text: bytes, defects: Defects) -> tuple[bytes, list[InlineFile]]:
    """Return the text without the files, and the files; what only looks like one stays in the text."""
    if text.find(b"begin ") < 0:
        return text, []
    files: list[InlineFile] = []
    kept: list[bytes] = []
    position = 0
    while len(files) < limits.INLINE_FILES and (begin := _BEGIN.search(text, position)):
        read = _read_uuencoded if begin["uu"] is not None else _read_yenc
        content, end = read(text, begin, defects)
        if content is None:
            kept.append(text[position:end])
            position = end
            continue
        kept.append(text[position : begin.start()])
        files.append(InlineFile(_name(begin), content))
        position = end
    return b"".join([*kept, text[position:]]), files


def _name(begin: re.Match[bytes]) -> str:
    name = begin["uu"]
    if name is None:
        found = _YENC_NAME.search(begin["yenc"])
        name = found[1] if found else b""
    return charsets.decode_header(name.strip(b' "'), None, Defects())


def _read_uuencoded(text: bytes, begin: re.Match[bytes], defects: Defects) -> tuple[bytes | None, int]:
    """Return the content and the offset behind it; None unless its lines are as long as they say."""
    decoded: list[bytes] = []
    position = begin.end()
    for line, end in iter_lines(text, position):
        if line.rstrip() == b"end":
            return (b"".join(decoded), end) if decoded else (None, end)
        if line.strip(b"` ") and not _is_uuencoded(line):
            break
        position = end
        try:
            decoded.append(decode_uuencoded_line(line) if line else b"")
        except binascii.Error:
            defects.note(Defect.TRANSFER_INVALID)
    content = b"".join(decoded)
    if not content:
        return None, position
    defects.note(Defect.TRANSFER_INVALID)  # it does not end
    return content, position


def _is_uuencoded(line: bytes) -> bool:
    length = (line[0] - 32) & 63
    signs = (length + 2) // 3 * 4
    # Trailing spaces, which stand for zeros, are often lost, and some encoders add a checksum.
    return _UU_LINE.fullmatch(line) is not None and length > 0 and signs // 2 <= len(line) - 1 <= signs + 2


def _read_yenc(text: bytes, begin: re.Match[bytes], defects: Defects) -> tuple[bytes | None, int]:
    start = begin.end()
    if part := _YENC_PART.match(text, start):
        start = part.end()
    end = _YENC_END.search(text, start)
    if end is None:
        return None, len(text)  # no other one ends either
    data = text[start : end.start()].translate(None, b"\r\n")
    data = _YENC_ESCAPED.sub(lambda escaped: bytes(((escaped[1][0] - 64) & 0xFF,)), data)
    content = data.translate(_MINUS_42)
    size = _YENC_SIZE.search(end[1])
    if size is None or int(size[1]) != len(content):
        defects.note(Defect.TRANSFER_INVALID)
    return content, end.end()
