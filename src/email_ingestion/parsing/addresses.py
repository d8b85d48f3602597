"""Parse address fields (RFC 5322, section 3.4) into lists of mailboxes, and accept the mistakes that senders make."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from typing import Final

from email_ingestion.parsing import limits
from email_ingestion.parsing.defects import Defect, Defects
from email_ingestion.parsing.encoded_words import decode_words
from email_ingestion.parsing.headers import one_line, without_comments
from email_ingestion.records import Address

# Encoded words first: sloppy senders leave commas and quotes in them. A bracket that never closes ends at the next
# comma, so that it cannot swallow the other recipients; a source route (RFC 5322, section 4.4) is left out. Possessive,
# so that nothing is tried twice.
_OTHERS: Final = (
    r"(?P<word>=\?[^?\s]{1,80}\?[bBqQ]\?[^?\s]*+\?=)"
    r"|<(?:\s*@[^<>:;\"]{1,500}:)?(?P<angle>[^<>,;\"]*+(?:\"[^\"<>]*+\"[^<>,;\"]*+)?)>?"
    r"|(?P<mark>[,;:()])"
    r"|(?P<text>\[[^\[\]\s,;<>]*+\]|\\.|[^\[\"<>,;:()=\\]++|.)"
)
_TOKEN: Final = re.compile(r'"(?P<quoted>(?:[^"\\]|\\.)*+)"|' + _OTHERS, re.DOTALL)
_UNQUOTED_TOKEN: Final = re.compile(_OTHERS + "|(?P<quoted>(?!))", re.DOTALL)
_CACHED_CHARS: Final = 200  # characters; what longer fields say is not kept
_UNESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)
_ADDRESS: Final = re.compile(r"(?:\"[^\"]*\"|[^\s@\"]+)@[^\s@]+")
_WITHIN: Final = re.compile(r"[^\s@<>()\[\]\"',;:]{1,300}@[^\s@<>()\"',;:]{1,300}")
_QUOTES: Final = re.compile(r"(['\"])([^'\"]*@[^'\"]*)\1")
_AROUND_DOTS: Final = re.compile(r"(?<!\s)\s*+([@.])\s*+")  # a run of spaces is tried once
_PLAIN: Final = re.compile(r"[\w.+-]++@[\w.-]++")
_SPECIALS: Final = re.compile(r"[\"():;\\\[]|=\?")
_SIMPLE: Final = re.compile(
    r" *+([\w.'-]++(?: [\w.'-]++)*+)? *<([!-&*-9=?A-~]++@[!-&*-9=?A-~]++)> *|([#-&*-9=?A-~]++@[#-&*-9=?A-~]++) *"
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
        self.named = 0  # tokens of the phrase that stand before the brackets
        self.quoted: str | None = None  # the last token as written, if it was in quotes

    def to_address(self, defects: Defects) -> Address | None:
        phrase = "".join(self.phrase).strip()
        comment = _UNESCAPE.sub(r"\1", "".join(self.comment)).strip()
        if self.angle is None:
            return self._from_phrase(phrase, comment, defects)
        if not self.angle.strip() and _ADDRESS.fullmatch(phrase):
            return _make_address(comment, phrase, defects)
        return _make_address(phrase or comment, self.angle, defects)

    def _from_phrase(self, phrase: str, comment: str, defects: Defects) -> Address | None:
        """Read a phrase without brackets, whose last word may be the address ("Ann Lee ann@example.com")."""
        if _ADDRESS.fullmatch(phrase):
            return _make_address(comment, phrase, defects)
        if not phrase and not comment:
            return None
        defects.note(Defect.ADDRESS_INVALID)
        compact = _AROUND_DOTS.sub(r"\1", phrase)  # RFC 5322, section 4.4 allows spaces around "@" and "."
        name, _, last = compact.rpartition(" ")
        if _ADDRESS.fullmatch(last):
            return _make_address(name or comment, last, defects)
        if within := _WITHIN.search(phrase) or _WITHIN.search(comment):
            name = phrase.replace(within[0], " ") if within.string is phrase else phrase
            return _make_address(name, within[0], defects)
        if comment and phrase and " " not in phrase:
            return _make_address(comment, phrase, defects)
        return _make_address(phrase or comment, "", defects)


def parse(values: list[str], defects: Defects) -> tuple[Address, ...]:
    """Return the mailboxes of all fields of one name; of a group its members, or its name when it has none."""
    if not values:
        return ()
    short = len(values) == 1 and len(values[0]) <= _CACHED_CHARS
    found, own_defects = _parse_cached(values[0]) if short else _parse_all(values)
    defects.add(own_defects)
    return found


def _parse_all(values: list[str]) -> tuple[tuple[Address, ...], Defects]:
    defects = Defects()
    found = list(islice(_parse_fields(values, defects), limits.RECIPIENTS + 1))
    if len(found) > limits.RECIPIENTS or sum(map(len, values)) > limits.RECIPIENT_CHARS:
        defects.note(Defect.ADDRESS_TRUNCATED)
    return tuple(found[: limits.RECIPIENTS]), defects


@lru_cache(maxsize=512)
def _parse_cached(value: str) -> tuple[tuple[Address, ...], Defects]:
    """Parse one short field: most mail is from and to people who write often."""
    return _parse_all([value])


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


def _parse_tokens(value: str, defects: Defects, *, decoded: bool = False) -> Iterator[Address]:
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
            if found := _finish(mailbox, defects, decoded=decoded):
                yield from found
                group = ""
            elif mark == ";" and group:
                yield _make_address(group, "", defects)
                group = ""
            mailbox = _Mailbox()
        elif _begins_another(mailbox, match["angle"]):
            following = _Mailbox()
            following.phrase = mailbox.phrase[mailbox.named :]
            del mailbox.phrase[mailbox.named :]
            yield from _finish(mailbox, defects, decoded=decoded)
            mailbox = following
            _add_token(mailbox, match)
        else:
            _add_token(mailbox, match)
    yield from _finish(mailbox, defects, decoded=decoded)


def _begins_another(mailbox: _Mailbox, angle: str | None) -> bool:
    """Tell whether a second address in brackets follows without a comma."""
    return angle is not None and "@" in angle and "@" in (mailbox.angle or "") and angle != mailbox.angle


def _finish(mailbox: _Mailbox, defects: Defects, *, decoded: bool) -> list[Address]:
    """Return the mailbox; several when a sender has put whole mailboxes into one encoded word."""
    phrase = "".join(mailbox.phrase)
    if mailbox.angle is None and "=?" in phrase and not decoded:
        text = decode_words(phrase, defects)
        if "=?" not in text and _WITHIN.search(text):
            defects.note(Defect.ADDRESS_INVALID)
            return list(_parse_tokens(text, defects, decoded=True))
    address = mailbox.to_address(defects)
    return [address] if address else []


def _tokenize(value: str) -> Iterator[re.Match[str]]:
    """Yield the tokens. Once one quote does not close, no other can: searching for its end again would be quadratic."""
    token, position = _TOKEN, 0
    while match := token.match(value, position):
        if match[0] == '"':
            token = _UNQUOTED_TOKEN
        yield match
        position = match.end()


def _add_token(mailbox: _Mailbox, match: re.Match[str]) -> None:
    quoted, mailbox.quoted = mailbox.quoted, None
    if (angle := match["angle"]) is not None:
        if mailbox.angle is None or ("@" in angle and "@" not in mailbox.angle):
            mailbox.phrase.append(mailbox.angle or "")
            mailbox.angle, mailbox.named = angle, len(mailbox.phrase)
    elif match["quoted"] is not None:
        mailbox.quoted = match[0]
        mailbox.phrase.append(_UNESCAPE.sub(r"\1", match["quoted"]))
    elif match[0] == ">":
        return  # stray
    else:
        if quoted and match[0].startswith("@"):  # the quotes are part of the address
            mailbox.phrase[-1] = quoted
        mailbox.phrase.append(match[0])


def _make_address(name: str, addr: str, defects: Defects) -> Address:
    addr = one_line(decode_words(addr, defects), defects)
    if not addr.isascii() or not _PLAIN.fullmatch(addr):
        addr = _repair(addr)
    return Address(name=one_line(decode_words(name, defects), defects).strip("\"' "), addr=addr)


def _repair(addr: str) -> str:
    """Remove from an address what is around it: comments, quotes around all of it, "mailto:", spaces at "@" and "."."""
    if "(" in addr:
        addr = without_comments(addr).strip()
    addr = _AROUND_DOTS.sub(r"\1", addr) if not addr.startswith('"') else addr
    if quoted := _QUOTES.fullmatch(addr):
        addr = quoted[2]
    if (
        addr.startswith("[") and addr.endswith("]") and "@" in addr
    ):  # as Outlook quotes them: Ann [mailto:a@example.com]
        addr = addr[1:-1]
    return addr[7:] if addr[:7].lower() == "mailto:" else addr
