"""Parse address fields (RFC 5322, section 3.4) into lists of mailboxes, and accept the mistakes that senders make."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Final

from email_ingestion.parsing import limits
from email_ingestion.parsing.defects import Defect, Defects
from email_ingestion.parsing.encoded_words import decode_words
from email_ingestion.parsing.headers import one_line
from email_ingestion.records import Address

# Encoded words first: sloppy senders leave commas and quotes in them. A bracket that never closes ends at the next
# comma, so that it cannot swallow the other recipients. Possessive, so that nothing is tried twice.
_OTHERS: Final = (
    r"(?P<word>=\?[^?\s]{1,80}\?[bBqQ]\?[^?\s]*+\?=)"
    r"|<(?P<angle>[^<>,;\"]*+(?:\"[^\"<>]*+\"[^<>,;\"]*+)?)>?"
    r"|(?P<mark>[,;:()])"
    r"|(?P<text>\[[^\[\]\s,;<>]*+\]|[^\[\"<>,;:()=]++|.)"
)
_TOKEN: Final = re.compile(r'"(?P<quoted>(?:[^"\\]|\\.)*+)"|' + _OTHERS, re.DOTALL)
_UNQUOTED_TOKEN: Final = re.compile(_OTHERS + "|(?P<quoted>(?!))", re.DOTALL)
_UNESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)
_ADDRESS: Final = re.compile(r"[^\s@]+@[^\s@]+")
_SPECIALS: Final = re.compile(r"[\"():;\\\[]|=\?")
_SIMPLE: Final = re.compile(
    r" *+([\w.'-]++(?: [\w.'-]++)*+)? *<([!-;=?A-~]++@[!-;=?A-~]++)> *|([!-;=?A-~]++@[!-;=?A-~]++) *"
)
# One mailbox whose name is in quotes or in encoded words; together with _SIMPLE nearly every sender there is.
_NAMED: Final = re.compile(
    r" *+(?:\"([^\"\\\x00-\x1f]*+)\"|((?:=\?[!->@-~]{1,80}\?[bBqQ]\?[!->@-~]*+\?= *+)++)) *+<([\w.+-]++@[\w.-]++)> *"
)


class _Mailbox:
    """The tokens since the last comma."""

    def __init__(self) -> None:
        self.phrase: list[str] = []
        self.comment: list[str] = []
        self.angle: str | None = None

    def to_address(self, defects: Defects) -> Address | None:
        phrase = "".join(self.phrase).strip()
        if self.angle is None and _ADDRESS.fullmatch(phrase):
            return _make_address("".join(self.comment), phrase, defects)
        if self.angle is None:
            return self._from_phrase(phrase, defects)
        return _make_address(phrase or "".join(self.comment), self.angle, defects)

    def _from_phrase(self, phrase: str, defects: Defects) -> Address | None:
        """Read a phrase without brackets, whose last word may be the address ("Ann Lee ann@example.com")."""
        if not phrase:
            return None
        name, _, last = phrase.rpartition(" ")
        defects.note(Defect.ADDRESS_INVALID)
        return _make_address(name, last, defects) if _ADDRESS.fullmatch(last) else _make_address(phrase, "", defects)


def parse(values: list[str], defects: Defects) -> tuple[Address, ...]:
    """Return the mailboxes of all fields of one name; of a group its members, or its name when it has none."""
    if not values:
        return ()
    found = list(islice(_parse_fields(values, defects), limits.RECIPIENTS + 1))
    if len(found) > limits.RECIPIENTS or sum(map(len, values)) > limits.RECIPIENT_CHARS:
        defects.note(Defect.ADDRESS_TRUNCATED)
    return tuple(found[: limits.RECIPIENTS])


def _parse_fields(values: list[str], defects: Defects) -> Iterator[Address]:
    left = limits.RECIPIENT_CHARS
    for whole in values:
        value = whole[: max(left, 0)]
        left -= len(value)
        # Most fields need no tokens: with none of these signs, every comma separates
        pieces = [value] if _SPECIALS.search(value) else value.split(",")
        for piece in pieces:
            if simple := _SIMPLE.fullmatch(piece):
                yield Address(name=simple[1] or "", addr=simple[2] or simple[3])
            elif named := _NAMED.fullmatch(piece):
                yield _make_address(named[1] or named[2] or "", named[3], defects)
            else:
                yield from _parse_tokens(piece, defects)


def _parse_tokens(value: str, defects: Defects) -> Iterator[Address]:
    mailbox, depth, group = _Mailbox(), 0, ""
    for match in _tokenize(value):
        mark = match["mark"]
        if mark == "(" or (mark == ")" and depth):
            depth += 1 if mark == "(" else -1
        elif depth:
            mailbox.comment.append(match[0])
        elif mark == ":":
            group, mailbox = "".join(mailbox.phrase).strip(), _Mailbox()
        elif mark in {",", ";"}:
            if address := mailbox.to_address(defects):
                yield address
                group = ""
            elif mark == ";" and group:
                yield _make_address(group, "", defects)
                group = ""
            mailbox = _Mailbox()
        else:
            _add_token(mailbox, match)
    if address := mailbox.to_address(defects):
        yield address


def _tokenize(value: str) -> Iterator[re.Match[str]]:
    """Yield the tokens. Once one quote does not close, no other can: searching for its end again would be quadratic."""
    token, position = _TOKEN, 0
    while match := token.match(value, position):
        if match[0] == '"':
            token = _UNQUOTED_TOKEN
        yield match
        position = match.end()


def _add_token(mailbox: _Mailbox, match: re.Match[str]) -> None:
    if match["angle"] is not None:
        mailbox.angle = match["angle"] if mailbox.angle is None else mailbox.angle
    elif match["quoted"] is not None:
        mailbox.phrase.append(_UNESCAPE.sub(r"\1", match["quoted"]))
    else:
        mailbox.phrase.append(match[0])


def _make_address(name: str, addr: str, defects: Defects) -> Address:
    return Address(
        name=one_line(decode_words(name, defects), defects).strip("\"' "),
        addr=one_line(decode_words(addr, defects), defects),
    )
