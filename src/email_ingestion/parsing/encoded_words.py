"""Decode RFC 2047 encoded words in header values, also malformed ones."""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from email_ingestion.parsing import charsets, limits
from email_ingestion.parsing.defects import Defect, Defects

# Wider than the RFC: spaces inside the text (section 5 forbids them, many senders write them) and a language tag
# (RFC 2231, section 5). Every repetition stops at the next "?", so it is linear.
_WORD: Final = re.compile(r"=\?([^?*\s]{1,60})(?:\*[^?\s]{0,40})?\?([bBqQ])\?([^?]*)\?=")
_NOT_BASE64: Final = re.compile(r"[^A-Za-z0-9+/]+")


@dataclass(slots=True)
class _Run:
    """Adjacent words of one charset and encoding: senders split characters between them, so bytes are joined first."""

    charset: str
    encoding: str
    texts: list[str]
    start: int
    end: int


def decode_words(value: str, defects: Defects) -> str:
    """Decode the encoded words in `value` and drop white space between two of them (RFC 2047, section 6.2)."""
    if "=?" not in value:
        return value
    pieces: list[str] = []
    position = 0
    for run in _find_runs(value):
        gap = value[position : run.start]
        if not (pieces and gap.isspace()):
            pieces.append(gap)
        pieces.append(_decode_run(run, defects))
        position = run.end
    pieces.append(value[position:])
    if "=?" in value[position:]:
        defects.note(Defect.ENCODED_WORD_INVALID)
    return "".join(pieces)


def _find_runs(value: str) -> Iterator[_Run]:
    run: _Run | None = None
    for match in islice(_WORD.finditer(value), limits.ENCODED_WORDS):
        charset, encoding, text = match[1].lower(), match[2].lower(), match[3]
        adjacent = run and (run.charset, run.encoding) == (charset, encoding)
        if run and adjacent and not value[run.end : match.start()].strip():
            run.texts.append(text)
            run.end = match.end()
            continue
        if run:
            yield run
        run = _Run(charset, encoding, [text], match.start(), match.end())
    if run:
        yield run


def _decode_run(run: _Run, defects: Defects) -> str:
    data = _decode_b(run.texts, defects) if run.encoding == "b" else _decode_q(run.texts)
    return charsets.decode(data, run.charset, defects)


def _decode_q(texts: list[str]) -> bytes:
    return b"".join(binascii.a2b_qp(text.encode("utf-8", "replace"), header=True) for text in texts)


def _decode_b(texts: list[str], defects: Defects) -> bytes:
    """Decode word by word; if that fails, join the words and drop stray characters before decoding."""
    try:
        return b"".join(binascii.a2b_base64(text.encode("ascii"), strict_mode=True) for text in texts)
    except ValueError:  # binascii.Error and UnicodeEncodeError both are
        defects.note(Defect.ENCODED_WORD_INVALID)
    clean = _NOT_BASE64.sub("", "".join(texts))
    return binascii.a2b_base64(clean[: len(clean) - (len(clean) % 4 == 1)] + "===")
