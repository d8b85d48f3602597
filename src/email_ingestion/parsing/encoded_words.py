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

# Wider than the RFC: spaces and question marks inside the text (section 5 forbids them, many senders write them), one
# behind the encoding, a language tag (RFC 2231, section 5), and no charset. The text stops before the next "=?" and is
# possessive: linear.
_TEXT: Final = r"(?:[^?=]|=(?!\?[^=])|\?(?!=))*+"
_WORD: Final = re.compile(rf"=\?([^?*\s]{{0,60}})(?:\*[^?\s]{{0,40}})?\?([bBqQ])[ \t]?\?({_TEXT})\?=")
_RAW_WORD: Final = re.compile(rf"(=\?[^?\s]{{0,100}}\?[qQ]\?)({_TEXT})(?=\?=)".encode())
_NON_ASCII: Final = re.compile(rb"[\x80-\xff]")
_UTF_8: Final = {"utf-8", "utf8"}  # of which bytes tell whether they are text
_NOT_BASE64: Final = re.compile(r"[^A-Za-z0-9+/]+")


@dataclass(slots=True)
class _Run:
    """Adjacent words of one charset: senders split characters between them, so bytes are joined before decoding."""

    charset: str
    texts: list[tuple[str, list[str]]]  # encoding, and the texts of adjacent words that have it
    start: int
    end: int

    def add(self, encoding: str, text: str, end: int) -> None:
        """Add a word that ends at the offset `end`."""
        if self.texts[-1][0] == encoding:
            self.texts[-1][1].append(text)
        else:
            self.texts.append((encoding, [text]))
        self.end = end


def quote_raw_bytes(value: bytes) -> bytes:
    """Write raw bytes above 127 inside "Q" words as "=XX": they are in the charset of their word."""
    return _RAW_WORD.sub(lambda word: word[1] + _NON_ASCII.sub(lambda byte: b"=%02X" % byte[0][0], word[2]), value)


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
        if run and run.charset == charset and not value[run.end : match.start()].strip():
            run.add(encoding, text, match.end())
            continue
        if run:
            yield run
        run = _Run(charset, [(encoding, [text])], match.start(), match.end())
    if run:
        yield run


def _decode_run(run: _Run, defects: Defects) -> str:
    data = b"".join(
        _decode_b(texts, run.charset, defects) if encoding == "b" else _decode_q(texts) for encoding, texts in run.texts
    )
    return charsets.decode(data, run.charset, defects)


def _is_text(written: str) -> bool:
    """Tell text with the label of base64: it has spaces and punctuation, or hardly a sign of base64."""
    stray = "".join(_NOT_BASE64.findall(written.strip("= ")))
    return 2 * len(stray) > len(written) or (" " in stray and not stray.isspace())


def _decode_q(texts: list[str]) -> bytes:
    return b"".join(binascii.a2b_qp(text.encode("utf-8", "replace"), header=True) for text in texts)


def _decode_b(texts: list[str], charset: str, defects: Defects) -> bytes:
    """Decode word by word, padded wrongly or not; if that fails, join the words and drop stray characters before."""
    try:
        return b"".join(binascii.a2b_base64(text.encode("ascii"), strict_mode=True) for text in texts)
    except ValueError:  # binascii.Error and UnicodeEncodeError both are
        defects.note(Defect.ENCODED_WORD_INVALID)
    if charset in _UTF_8 and (padded := _decode_padded(texts)) is not None:
        return padded
    whole = "".join(texts)
    clean = _NOT_BASE64.sub("", whole)
    if _is_text(whole):
        return whole.encode("utf-8", "replace")  # it is text with a wrong label
    return binascii.a2b_base64(clean[: len(clean) - (len(clean) % 4 == 1)] + "===")


def _decode_padded(texts: list[str]) -> bytes | None:
    """Return what the words mean with the right padding; None if one is no base64, cut within a byte, or not UTF-8."""
    words = [text.rstrip("=") for text in texts]
    try:
        decoded = [binascii.a2b_base64(word + "=" * (-len(word) % 4), strict_mode=True) for word in words]
        b"".join(decoded).decode()
    except ValueError:
        return None
    whole = all(
        binascii.b2a_base64(data).decode().rstrip("=\n") == word for data, word in zip(decoded, words, strict=True)
    )
    return b"".join(decoded) if whole else None
