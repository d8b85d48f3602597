"""Decode bytes to text, also when the declared charset is wrong, unknown or missing."""

from __future__ import annotations

import codecs
import re
from functools import lru_cache
from typing import Final

from charset_normalizer import from_bytes

from email_ingestion.parsing import limits
from email_ingestion.parsing.defects import Defect, Defects

# Labels of mail programs that Python does not know, or reads too narrowly: as in the WHATWG encoding standard, each
# stands for the superset its users really send.
_ALIASES: Final = {
    "ansi_x3.110-1983": "latin-1",
    "big5": "cp950",
    "cp-850": "cp850",
    "cseuckr": "cp949",
    "cseucpkdfmtjapanese": "euc_jp",
    "csiso2022jp": "iso2022_jp_2",
    "csshiftjis": "cp932",
    "default": "ascii",
    "euc-kr": "cp949",
    "gb2312": "gb18030",
    "gb_2312-80": "gb18030",
    "gbk": "gb18030",
    "iso-2022-jp": "iso2022_jp_2",
    "iso-8859-1": "cp1252",
    "iso-8859-8-e": "iso8859_8",
    "iso-8859-8-i": "iso8859_8",
    "iso-8859-9": "cp1254",
    "iso8859-1": "cp1252",
    "ks_c_5601-1987": "cp949",
    "latin1": "cp1252",
    "macintosh": "mac_roman",
    "shift-jis": "cp932",
    "shift_jis": "cp932",
    "sjis": "cp932",
    "tis-620": "cp874",
    "unicode-1-1-utf-7": "utf_7",
    "us-ascii": "ascii",
    "utf8mb4": "utf_8",
    "windows-31j": "cp932",
    "windows-874": "cp874",
    "x-gbk": "gb18030",
    "x-sjis": "cp932",
    "x-mac-roman": "mac_roman",
}
# Codecs of Python that read text but are no charset of mail; punycode is quadratic, too.
_NOT_CHARSETS: Final = frozenset(
    {"idna", "mbcs", "oem", "punycode", "raw-unicode-escape", "undefined", "unicode-escape"}
)
_LABEL: Final = re.compile(r"[a-z0-9][a-z0-9._:+-]{0,39}")
# What is really met undeclared; a short list keeps the detection short and its answers plausible. The order decides
# where several fit equally well, as they often do on short texts.
_DETECTED_CODECS: Final = [
    "cp1252", "cp1250", "cp1251", "koi8_r", "cp1253", "cp1254", "cp1255", "cp1256", "cp874",
    "euc_jp", "gb18030", "big5", "cp932", "cp949", "utf_16", "utf_8",
]  # fmt: skip
_PARAMETER: Final = re.compile(rb"charset\s*=\s*[\"']?([A-Za-z0-9._:-]{1,40})", re.IGNORECASE)
_BOMS: Final = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_MAX_DAMAGED_SHARE: Final = 0.1  # of the bytes above 127 may be damaged before a multi-byte charset is disbelieved
_MIN_TELLING_BYTES: Final = (
    8  # fewer bytes above 127 than these tell nothing: the most frequent charset is the best guess
)
_NON_ASCII: Final = re.compile(rb"[\x80-\xff]+")
_MULTIBYTE: Final = frozenset({"utf-8", "gb18030", "cp950", "cp932", "cp949", "euc_jp", "big5hkscs", "iso2022_jp_2"})


def decode(data: bytes, declared: str | None, defects: Defects) -> str:
    """Decode `data` as declared, else as detected, else as Latin-1; note a defect unless it was as declared."""
    codec = _find_codec(declared) if declared else None
    text = _try_decode(data, codec) if codec else None
    if text is not None:
        return text
    if data.isascii():
        if declared and codec is None:
            defects.note(Defect.CHARSET_UNKNOWN)
        return data.decode("ascii")
    defects.note(_mismatch(declared, codec))
    damaged = _decode_damaged(data, codec) if codec in _MULTIBYTE else None
    return damaged if damaged is not None else detect_and_decode(data, defects)


def detect_and_decode(data: bytes, defects: Defects) -> str:
    """Decode `data` without a declared charset."""
    for bom, codec in _BOMS:
        if data.startswith(bom):
            return data[len(bom) :].decode(codec, "replace")
    text = _try_decode(data, "utf-8")
    if text is None and (guess := _detect_codec(data[: limits.DETECT_BYTES])):
        text = _try_decode(data, guess)
    if text is None:
        text = _decode_damaged(data, "utf-8")
    return text if text is not None else _decode_latin1(data, defects)


def decode_header(data: bytes, codec: str | None, defects: Defects) -> str:
    """Decode an 8-bit header value as UTF-8 (RFC 6532), else with the codec of the whole header, else as Latin-1."""
    text = _try_decode(data, "utf-8")
    if text is None and codec:
        text = _try_decode(data, codec)
    return text if text is not None else _decode_latin1(data, defects)


def header_codec(values: bytes, message: bytes) -> str | None:
    """Return the codec of a header's 8-bit bytes: the charset that the message declares first, or the detected one.

    All fields share it: a single subject is too short to detect anything, and a thousand detections are too slow.
    """
    declared = declared_codec(message)
    if declared and _try_decode(values, declared) is not None:
        return declared
    return _detect_codec(values[: limits.DETECT_BYTES])


def declared_codec(message: bytes) -> str | None:
    """Return the codec of the first charset parameter in the message, if it is one for 8-bit bytes."""
    found = _PARAMETER.search(message, 0, limits.DECLARED_BYTES)
    codec = _find_codec(found[1].decode("ascii")) if found else None
    return None if codec in {"ascii", "utf-8"} else codec


def _decode_latin1(data: bytes, defects: Defects) -> str:
    defects.note(Defect.CHARSET_UNDETECTED)
    return data.decode("latin-1")


def _mismatch(declared: str | None, codec: str | None) -> Defect:
    if not declared:
        return Defect.CHARSET_MISSING
    return Defect.CHARSET_WRONG if codec else Defect.CHARSET_UNKNOWN


def _try_decode(data: bytes, codec: str) -> str | None:
    try:
        return data.decode(codec).removeprefix("\ufeff")
    except ValueError:  # UnicodeError is one
        return None


def _decode_damaged(data: bytes, codec: str | None) -> str | None:
    """Decode with U+FFFD for damaged bytes; None when too many are damaged, so that the charset must be another."""
    text = data.decode(codec or "utf-8", "replace")
    non_ascii = sum(map(len, _NON_ASCII.findall(data)))
    return text if text.count("\ufffd") <= non_ascii * _MAX_DAMAGED_SHARE else None


def _detect_codec(sample: bytes) -> str | None:
    if sum(map(len, _NON_ASCII.findall(sample))) < _MIN_TELLING_BYTES:
        return "cp1252"
    matches = from_bytes(sample, steps=3, cp_isolation=_DETECTED_CODECS, preemptive_behaviour=False)
    best = matches.best()
    if best is None:
        return None
    equal = [one for one in matches if (one.chaos, one.coherence) == (best.chaos, best.coherence)]
    fitting = {encoding for one in equal for encoding in one.could_be_from_charset}
    return min(fitting & set(_DETECTED_CODECS), key=_DETECTED_CODECS.index, default=best.encoding)


@lru_cache(maxsize=512)
def _find_codec(label: str) -> str | None:
    """Return the Python codec for a charset label; None when Python has none or it is not a charset."""
    name = label.strip(" \t'\"<>;,").lower()
    name = _ALIASES.get(name, name)
    if not _LABEL.fullmatch(name):
        return None
    try:
        codec = codecs.lookup(name).name
        b"\0\0\0\0".decode(codec, "replace")  # refuses what is no text encoding, such as zlib; not so for b""
    except (LookupError, ValueError, ImportError):
        return None
    codec = _ALIASES.get(codec, codec)
    return None if codec.replace("_", "-") in _NOT_CHARSETS else codec
