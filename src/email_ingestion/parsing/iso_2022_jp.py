"""Decode ISO-2022-JP as Japanese programs write it; Python's codec knows neither NEC's row 13 nor half-width kana."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from email_ingestion.parsing import limits

_ESCAPE: Final = re.compile(rb"\x1b(\$[@AB]|\$\([@ABCD]|\([BHIJ]|\.[AF]|&@)")
_UNKNOWN_ESCAPE: Final = re.compile(rb"\x1b(?!\$[@AB]|\$\([@ABCD]|\([BHIJ]|\.[AF]|&@)")
_ASCII: Final = frozenset({b"(B", b"(J", b"(H"})
_SHIFTED: Final = re.compile(rb"\x0e([^\x0f\n]*)\x0f?")
_PIECES: Final = re.compile(rb"((?:[\x21-\x7e\xa1-\xfe]{2})+)|([^\n])|(\n.*)", re.DOTALL)


def decode(data: bytes, *, declared: bool = False) -> str | None:
    """Return the text; None when it holds an escape sequence of another charset, and is not declared to be this one.

    A line that does not switch back to ASCII ends there all the same (RFC 1468: the next line begins in ASCII).
    """
    if b"\x1b" not in data and b"\x0e" not in data and data.isascii():
        return data.decode("ascii")
    data, rest = data[: limits.JIS_BYTES], data[limits.JIS_BYTES :]
    pieces = _ESCAPE.split(data)
    if any(b"\x1b" in text for text in pieces[::2]):
        if not declared:
            return None
        pieces = _ESCAPE.split(_UNKNOWN_ESCAPE.sub(b"\x1b(B\xff", data))
    texts = [_decode_single(pieces[0])]
    for mode, text in zip(pieces[1::2], pieces[2::2], strict=True):
        texts.append(_decode_piece(mode, text))
    return "".join(texts) + rest.decode("iso2022_jp_2", "replace")


def _decode_piece(mode: bytes, text: bytes) -> str:
    if mode in _ASCII:
        return _decode_single(text)
    if mode == b"(I":
        line, newline, rest = text.partition(b"\n")
        return _decode_kana(line) + (newline + rest).decode("ascii", "replace")
    to_text = _DOUBLE.get(mode)
    return _decode_double(text, to_text) if to_text else text.decode("ascii", "replace")


def _decode_single(text: bytes) -> str:
    """Decode ASCII with half-width kana, as bytes above 127 or between SO and SI."""
    shifted = _SHIFTED.sub(lambda kana: bytes(byte | 0x80 for byte in kana[1]), text)
    return shifted.decode("cp932", "replace")


def _decode_kana(text: bytes) -> str:
    return bytes(byte | 0x80 if byte > 0x20 else byte for byte in text).decode("cp932", "replace")  # noqa: PLR2004


def _decode_double(text: bytes, to_text: Callable[[bytes], str]) -> str:
    decoded: list[str] = []
    for pairs, other, rest in _PIECES.findall(text):
        if pairs:
            decoded.append(to_text(bytes(byte & 0x7F for byte in pairs)))
        elif rest:
            decoded.append(rest.decode("ascii", "replace"))
        else:
            decoded.append(" " if other == b" " else "" if other in b"\r" else "\ufffd")
    return "".join(decoded)


def _from_jis_x_0208(pairs: bytes) -> str:
    """Decode by way of Shift JIS in Microsoft's table, which has NEC's row 13 and the IBM extensions."""
    shifted = bytearray()
    for row, cell in zip(pairs[::2], pairs[1::2], strict=True):
        lead = (row - 0x21) // 2 + 0x81
        shifted.append(lead if lead <= 0x9F else lead + 0x40)  # noqa: PLR2004
        if row % 2:
            shifted.append(cell + 0x1F if cell < 0x60 else cell + 0x20)  # noqa: PLR2004
        else:
            shifted.append(cell + 0x7E)
    return shifted.decode("cp932", "replace")


def _from_jis_x_0212(pairs: bytes) -> str:
    marked = b"".join(bytes((0x8F, row | 0x80, cell | 0x80)) for row, cell in zip(pairs[::2], pairs[1::2], strict=True))
    return marked.decode("euc_jp", "replace")


def _from_euc(codec: str) -> Callable[[bytes], str]:
    return lambda pairs: bytes(byte | 0x80 for byte in pairs).decode(codec, "replace")


_DOUBLE: Final[dict[bytes, Callable[[bytes], str]]] = {
    b"$@": _from_jis_x_0208,
    b"$B": _from_jis_x_0208,
    b"$(@": _from_jis_x_0208,
    b"$(B": _from_jis_x_0208,
    b"$(D": _from_jis_x_0212,
    b"$A": _from_euc("gb2312"),
    b"$(A": _from_euc("gb2312"),
    b"$(C": _from_euc("euc_kr"),
}
