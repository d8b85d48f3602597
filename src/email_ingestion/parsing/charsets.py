"""Decode bytes to text, also when the declared charset is wrong, unknown or missing."""

from __future__ import annotations

import codecs
import re
from typing import Final

from charset_normalizer import from_bytes

from email_ingestion.parsing import iso_2022_jp, limits
from email_ingestion.parsing.charset_labels import find_codec
from email_ingestion.parsing.defects import Defect, Defects

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
_MULTIBYTE: Final = frozenset({"utf-8", "gb18030", "cp950", "cp932", "cp949", "euc_jp", "big5", "big5hkscs", "johab"})
_STATEFUL: Final = frozenset({"iso2022_jp_2", "iso2022_kr", "hz", "utf-7"})
_WIDE: Final = ("utf-16", "utf-32")
_LIKELY_CHARS: Final = 1_000
_MIN_NULS: Final = 4
# Text of two-byte charsets, and hardly another, has bytes above 127 in runs of even length.
_MIN_PAIRED_BYTES: Final = 12
_MIN_PAIRED_SHARE: Final = 0.8


def decode(data: bytes, declared: str | None, defects: Defects, hint: str | None = None) -> str:
    """Decode `data` as declared, else as detected, else as Latin-1; note a defect unless it was as declared.

    `hint` is a second label, which the text itself gives. UTF-8 that is valid wins over a single-byte charset, in which
    it would hardly make sense; over a multi-byte one only where that fails; and over a stateful one never.
    """
    codec = find_codec(declared) if declared else None
    if b"\0" in data and not (codec and codec.startswith(_WIDE)) and (wide := _detect_wide(data)):
        defects.note(_mismatch(declared, codec))
        codec = wide
    ascii_only = data.isascii()
    if codec in _STATEFUL or (ascii_only and b"\x1b" in data):
        text = _decode_stateful(data, declared, codec, defects)
        if text is not None:
            return text
    if ascii_only and not (codec and codec.startswith(_WIDE)):
        if declared and codec is None:
            defects.note(Defect.CHARSET_UNKNOWN)
        return data.decode("ascii")
    text = _decode_as_declared(data, codec) if codec else None
    if text is None:
        defects.note(_mismatch(declared, codec))
        text = _decode_otherwise(data, codec, find_codec(hint) if hint else None)
    return text if text is not None else detect_and_decode(data, defects)


def _decode_as_declared(data: bytes, codec: str) -> str | None:
    if codec in _MULTIBYTE:
        return _try_decode(data, codec)
    if codec.startswith(_WIDE):
        text = _try_decode(data, codec)
        return text if text is None or _is_likely(text) else None
    return None if _is_contradicted(data) else _try_decode(data, codec)


def _decode_otherwise(data: bytes, codec: str | None, hinted: str | None) -> str | None:
    """Decode by the hint, or as declared with a few damaged characters, unless the text is UTF-8."""
    if _is_utf8(data):
        return None
    text = _try_decode(data, hinted) if hinted and hinted != codec else None
    return _decode_damaged(data, codec) if text is None and codec in _MULTIBYTE else text


def decode_iso_2022(data: bytes, *, declared: bool = False) -> str | None:
    """Decode 7-bit text with escape sequences of ISO 2022, Japanese or Korean; None when it is none.

    Where it is declared to be Japanese, U+FFFD stands for what is damaged.
    """
    if b"\x1b$)C" in data:
        return _try_decode(data, "iso2022_kr")
    return iso_2022_jp.decode(data, declared=declared)


def _decode_stateful(data: bytes, declared: str | None, codec: str | None, defects: Defects) -> str | None:
    """Decode a charset of 7 bits that switches by escape sequences, also where it is not declared."""
    text = _try_decode(data, codec) if codec in _STATEFUL else None
    if text is not None and not (codec == "iso2022_jp_2" and "\x1b" in text):
        return text
    if b"\x1b" in data or b"\x0e" in data or codec == "iso2022_jp_2":
        text = decode_iso_2022(data, declared=codec == "iso2022_jp_2")
        if text is not None and codec != "iso2022_jp_2":
            defects.note(_mismatch(declared, codec))
        elif text is not None and "\ufffd" in text:
            if not data.isascii() and _is_utf8(data):
                return None
            defects.note(Defect.CHARSET_WRONG)
        return text
    return None


def _is_utf8(data: bytes) -> bool:
    return _try_decode(data, "utf-8") is not None


def _is_contradicted(data: bytes) -> bool:
    """Tell whether bytes above 127 with a single-byte label are UTF-8, UTF-16 or of a charset of two bytes."""
    if _is_utf8(data) or data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return True
    runs = _NON_ASCII.findall(data[: limits.DETECT_BYTES])
    total = sum(map(len, runs))
    if total < _MIN_PAIRED_BYTES or sum(len(run) for run in runs if len(run) % 2 == 0) < total * _MIN_PAIRED_SHARE:
        return False
    return _detect_codec(data[: limits.DETECT_BYTES]) in _MULTIBYTE


def _detect_wide(data: bytes) -> str | None:
    """Tell UTF-16 that no label declares: every other byte of Western text is NUL."""
    sample = data[: limits.DETECT_BYTES]
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    if max(even, odd) < _MIN_NULS or 4 * max(even, odd) < len(sample) or min(even, odd) * 10 > max(even, odd):
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def _is_likely(text: str) -> bool:
    """Tell whether UTF-16 gave text, and not what pairs of ASCII letters look like in it."""
    sample = text[:_LIKELY_CHARS]
    return sum(map(str.isascii, sample)) * 20 > len(sample) or any(one in sample for one in " \n\u3000\u3002")


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
    fits = declared and _try_decode(values, declared) is not None
    if fits and (declared in _MULTIBYTE or not _is_contradicted(values)):
        return declared
    return _detect_codec(values[: limits.DETECT_BYTES])


def declared_codec(message: bytes) -> str | None:
    """Return the codec of the first charset parameter in the message, if it is one for 8-bit bytes."""
    found = _PARAMETER.search(message, 0, limits.DECLARED_BYTES)
    codec = find_codec(found[1].decode("ascii")) if found else None
    return None if codec in {"ascii", "utf-8"} or codec in _STATEFUL else codec


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
