"""Read the RTF bodies of Outlook: decompress them (MS-OXRTFCP) and take out their HTML (MS-OXRTFEX) or their text."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, replace
from typing import Final

from email_ingestion.parsing import charset_labels, limits

_HEADER: Final = struct.Struct("<IIII")  # compressed size, raw size, kind, checksum
_COMPRESSED: Final = 0x75465A4C
_PLAIN: Final = 0x414C454D
_DICTIONARY: Final = (
    b"{\\rtf1\\ansi\\mac\\deff0\\deftab720{\\fonttbl;}{\\f0\\fnil \\froman \\fswiss \\fmodern \\fscript \\fdecor "
    b"MS Sans SerifSymbolArialTimes New RomanCourier{\\colortbl\\red0\\green0\\blue0\r\n\\par \\pard\\plain\\f0\\fs20"
    b"\\b\\i\\u\\tab\\tx"
)
_WINDOW: Final = 4096
_TOKEN: Final = re.compile(
    rb"\\'([0-9a-fA-F]{2})|\\([a-zA-Z]{1,32})(-?[0-9]{1,10})? ?|\\([^a-zA-Z'])|([{}])|([^\\{}\r\n]+)|[\r\n]+"
)
_HIDDEN: Final = frozenset(
    b"fonttbl colortbl stylesheet info pict object header footer headerl headerr footerl footerr generator xmlnstbl "
    b"listtable listoverridetable rsidtbl themedata colorschememapping datastore latentstyles mmathpr fldinst "
    b"mhtmltag bkmkstart bkmkend".split()
)
_WORDS: Final = {
    b"par": "\n",
    b"line": "\n",
    b"sect": "\n",
    b"page": "\n",
    b"row": "\n",
    b"cell": " ",
    b"tab": "\t",
    b"lquote": "\u2018",
    b"rquote": "\u2019",
    b"ldblquote": "\u201c",
    b"rdblquote": "\u201d",
    b"bullet": "\u2022",
    b"endash": "\u2013",
    b"emdash": "\u2014",
}


def decompress(data: bytes) -> bytes:
    """Return the RTF of PR_RTF_COMPRESSED, as far as it goes. Raises ValueError when it is none."""
    if len(data) < _HEADER.size:
        raise ValueError("no compressed RTF")
    _, size, kind, _ = _HEADER.unpack_from(data)
    size = min(size, limits.RTF_BYTES)
    if kind == _PLAIN:
        return data[_HEADER.size : _HEADER.size + size]
    if kind != _COMPRESSED:
        raise ValueError("no compressed RTF")
    out = bytearray(_DICTIONARY)
    position = _HEADER.size
    while position < len(data) and len(out) < size + len(_DICTIONARY):
        flags = data[position]
        position += 1
        for bit in range(8):
            if not flags >> bit & 1:
                out += data[position : position + 1]
                position += 1
                continue
            reference = int.from_bytes(data[position : position + 2], "big")
            position += 2
            offset, length = reference >> 4, (reference & 0xF) + 2
            distance = (len(out) - offset) % _WINDOW
            if distance == 0 or position > len(data):
                return bytes(out[len(_DICTIONARY) :])
            start = len(out) - distance
            for index in range(start, start + length):
                out.append(out[index] if index >= 0 else 0x20)
    return bytes(out[len(_DICTIONARY) : len(_DICTIONARY) + size])


@dataclass(frozen=True, slots=True)
class _Group:
    """What holds between two braces."""

    hidden: bool = False  # a destination that is no text
    html: bool = False  # a \\*\\htmltag
    rtf_only: bool = False  # between \\htmlrtf and \\htmlrtf0
    skip: int = 1  # bytes after \\u that stand in for it


def to_text(rtf: bytes) -> tuple[str, bool]:
    """Return the text of an RTF body, and whether it is HTML that Outlook had wrapped."""
    is_html = b"\\fromhtml" in rtf[:_WINDOW]
    return _Reader(is_html=is_html).read(rtf[: limits.RTF_BYTES]), is_html


class _Reader:
    def __init__(self, *, is_html: bool) -> None:
        self._is_html = is_html
        self._codec = "cp1252"
        self._pieces: list[str] = []
        self._bytes = bytearray()  # of \\'hh and of plain text, decoded together: a character may take two
        self._group = _Group()
        self._skip = 0

    def read(self, rtf: bytes) -> str:
        stack: list[_Group] = []
        star = False
        for token in _TOKEN.finditer(rtf):
            code, word, number, symbol, brace, text = token.groups()
            if brace == b"{":
                stack.append(self._group)
            elif brace == b"}":
                self._group = stack.pop() if stack else _Group()
            elif symbol == b"*":
                star = True
                continue
            elif word:
                self._apply(word.lower(), number, star=star)
            elif code:
                self._add(bytes.fromhex(code.decode()))
            elif symbol or text:
                self._add({b"~": b"\xa0", b"-": b"", b"_": b"-"}.get(symbol, symbol) if symbol else text)
            star = False
        self._flush()
        return "".join(self._pieces)

    def _apply(self, word: bytes, number: bytes | None, *, star: bool) -> None:
        if word == b"htmltag":
            self._group = replace(self._group, html=True, hidden=False)
        elif word == b"htmlrtf":
            self._group = replace(self._group, rtf_only=number != b"0")
        elif word in _HIDDEN or star:
            self._group = replace(self._group, hidden=True)
        elif word == b"ansicpg" and number:
            self._codec = charset_labels.find_codec(f"cp{number.decode()}") or self._codec
        elif word == b"uc" and number:
            self._group = replace(self._group, skip=min(abs(int(number)), 10))
        elif word == b"u" and number:
            self._add_text(chr(int(number) & 0xFFFF))
            self._skip = self._group.skip
        elif word in _WORDS:
            self._add_text(_WORDS[word])

    def _is_shown(self) -> bool:
        group = self._group
        return not group.hidden and not (group.rtf_only and self._is_html)

    def _add(self, data: bytes) -> None:
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        if self._is_shown():
            self._bytes += data

    def _add_text(self, text: str) -> None:
        if self._is_shown():
            self._flush()
            self._pieces.append(text)

    def _flush(self) -> None:
        if self._bytes:
            self._pieces.append(self._bytes.decode(self._codec, "replace"))
            self._bytes.clear()
