"""IMAP syntax without any connection: the tokens of a command, the quoting of an answer (RFC 3501 sections 4 and 9).

A command arrives as alternating text and literals; `tokenise` turns it into nested lists of tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

from imapclient import imap_utf7


class ParseError(ValueError):
    """The client's command is not IMAP; answered with BAD."""


@dataclass(frozen=True, slots=True)
class ImapToken:
    """An atom, a quoted string or a literal."""

    value: bytes
    is_quoted: bool = False

    def upper(self) -> bytes:
        """Return the value for comparing with a keyword."""
        return self.value.upper()


Node: TypeAlias = "ImapToken | list[Node]"

_ATOM_END = re.compile(rb'[\x00-\x20"(){]')
_ILLEGAL_IN_ATOM = re.compile(rb'[\x00-\x20(){%*"\\\]\x7f-\xff]')
_QUOTED = re.compile(rb'"((?:[^"\\\r\n]|\\["\\])*)"')
_ESCAPE = re.compile(rb'\\(["\\])')
_SECTION_ITEMS = (b"BODY", b"BODY.PEEK")


def tokenise(pieces: list[bytes]) -> list[Node]:
    """Return the tokens of a command whose text and literals alternate in `pieces`."""
    return _Tokeniser(pieces).scan()


class _Tokeniser:
    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self._stack: list[list[Node]] = [[]]

    def scan(self) -> list[Node]:
        for index, piece in enumerate(self._pieces):
            if index % 2:
                self._stack[-1].append(ImapToken(piece, is_quoted=True))
            else:
                self._scan_text(piece)
        if len(self._stack) != 1:
            raise ParseError("a parenthesis is not closed")
        return self._stack[0]

    def _scan_text(self, text: bytes) -> None:
        at = 0
        while at < len(text):
            char = text[at : at + 1]
            if char == b" ":
                at += 1
            elif char == b"(":
                self._open()
                at += 1
            elif char == b")":
                self._close()
                at += 1
            elif char == b'"':
                at = self._quoted(text, at)
            else:
                at = self._atom(text, at)

    def _open(self) -> None:
        group: list[Node] = []
        self._stack[-1].append(group)
        self._stack.append(group)

    def _close(self) -> None:
        if len(self._stack) == 1:
            raise ParseError("a parenthesis was never opened")
        self._stack.pop()

    def _quoted(self, text: bytes, at: int) -> int:
        match = _QUOTED.match(text, at)
        if match is None:
            raise ParseError("a quoted string is not closed")
        self._stack[-1].append(ImapToken(_ESCAPE.sub(rb"\1", match[1]), is_quoted=True))
        return match.end()

    def _atom(self, text: bytes, at: int) -> int:
        end = _atom_end(text, at)
        bracket = text.find(b"[", at, end)
        # A section (RFC 3501 section 6.4.5) is one item although it holds spaces and parentheses.
        if bracket > 0 and text[at:bracket].upper() in _SECTION_ITEMS:
            closing = text.find(b"]", bracket)
            if closing < 0:
                raise ParseError("a section is not closed")
            end = _atom_end(text, closing)
        if end == at:
            raise ParseError("a character that starts nothing")
        self._stack[-1].append(ImapToken(text[at:end]))
        return end


def _atom_end(text: bytes, at: int) -> int:
    match = _ATOM_END.search(text, at)
    return match.start() if match else len(text)


def format_string(value: bytes) -> bytes:
    """Return `value` as a quoted string, or as a literal when quoting cannot carry it."""
    if b"\r" in value or b"\n" in value or b"\0" in value or max(value, default=0) > 0x7F:  # noqa: PLR2004
        return b"{%d}\r\n%s" % (len(value), value)
    return format_quoted(value)


def format_quoted(value: bytes) -> bytes:
    """Return `value` between double quotes."""
    return b'"' + value.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def format_nstring(value: bytes | None) -> bytes:
    """Return a string or NIL."""
    return b"NIL" if value is None else format_string(value)


def format_label(name: str, *, utf8: bool = False) -> bytes:
    """Spell a label as Gmail's FETCH does: an atom when that is legal, otherwise quoted."""
    wire = name.encode() if utf8 else imap_utf7.encode(name)
    return format_quoted(wire) if not wire or _ILLEGAL_IN_ATOM.search(wire) else wire


def format_mailbox(name: str, *, utf8: bool = False) -> bytes:
    """Spell a mailbox name as Gmail's LIST does: always quoted."""
    return format_quoted(name.encode() if utf8 else imap_utf7.encode(name))


def name_of(token: Node, *, utf8: bool = False) -> str:
    """Return the mailbox or label a token names."""
    value = text_of(token)
    try:
        # Clients that send raw UTF-8 without asking for it are understood all the same.
        return value.decode() if utf8 or not value.isascii() else _decode_utf7(value)
    except ValueError as error:
        raise ParseError(str(error)) from error


def _decode_utf7(value: bytes) -> str:
    """Decode modified UTF-7 (RFC 3501 section 5.1.3); raise ValueError unless shifts have their canonical spelling.

    imapclient's decoder forgives a shift that is not closed, for example; the sandbox must not.
    """
    name: str = imap_utf7.decode(value)
    if b"&" in value and imap_utf7.encode(name) != value:
        raise ValueError("this is not modified UTF-7")
    return name


def text_of(node: Node) -> bytes:
    """Return the bytes of a string token."""
    if isinstance(node, list):
        raise ParseError("a string was expected, not a list")
    return node.value


def number_of(node: Node) -> int:
    """Return the number a token spells."""
    value = text_of(node)
    if not value.isdigit():
        raise ParseError("a number was expected")
    return int(value)


def list_of(node: Node) -> list[Node]:
    """Return the items of a parenthesised list; a lone item is a list of one."""
    return node if isinstance(node, list) else [node]
