r"""Names of mailboxes as servers list them: parsed and decoded without ever failing, and chosen for a setting.

    * LIST (\HasNoChildren) "/" "Entw&APw-rfe"     modified UTF-7 (RFC 3501, section 5.1.3), the rule
    * LIST () "/" "R&D"                            a bare `&`
    * LIST () NIL {9}                              no delimiter, a literal, UTF-8 as it is

One odd name must not keep the other mailboxes out. A mailbox is opened by the bytes that the server listed.
"""

from __future__ import annotations

import binascii
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from email_ingestion.errors import ConfigurationError

INBOX = "INBOX"
SHOWN_NAMES, SHOWN_LETTERS = 20, 100  # in an error, and of each
# As some servers call them, in answer to XLIST.
OTHER_ATTRIBUTES = {r"\allmail": r"\all", r"\spam": r"\junk", r"\starred": r"\flagged", r"\bulk": r"\junk"}

_ENTRY = re.compile(
    rb'(?:\((?P<attributes>[^)]*)\)|NIL) +(?P<delimiter>NIL|"(?:\\?.)?"|\S) +(?P<name>.*)',
    re.IGNORECASE | re.DOTALL,
)
_QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*)"\s*(?:\(|\Z)', re.DOTALL)  # alone, or before what LIST-EXTENDED adds
_LITERAL_END = re.compile(rb"\{\d+\+?\}\Z")
_ENCODED = re.compile(r"&([A-Za-z0-9+,]*)-")


@dataclass(frozen=True, slots=True)
class ListedMailbox:
    """One mailbox of a LIST response."""

    raw: bytes  # its name as the server wrote it, without quotes
    name: str  # the same for people
    attributes: frozenset[str]  # lower case, as `\junk`


def parse_list(responses: Iterable[Any]) -> list[ListedMailbox]:
    """Return the mailboxes of LIST or XLIST responses as imaplib stores them; what cannot be read is left out."""
    return list(_entries(responses))


def decode_name(raw: bytes) -> str:
    """Return a mailbox's name as people read it: whatever is not modified UTF-7 stays as the server wrote it."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return _ENCODED.sub(_decoded, text) if raw.isascii() else text


def encode_name(name: str) -> bytes:
    """Return a name in modified UTF-7."""
    pieces = re.split(r"([^ -~]+)", name)
    return b"".join(
        b"&" + binascii.b2a_base64(piece.encode("utf-16-be"), newline=False).rstrip(b"=").replace(b"/", b",") + b"-"
        if number % 2
        else piece.replace("&", "&-").encode()
        for number, piece in enumerate(pieces)
    )


def choose_mailbox(setting: str, mailboxes: Sequence[ListedMailbox], *, gmail: bool) -> ListedMailbox:
    r"""Return the mailbox of a setting: a name, an attribute as `\Junk`, or `auto`. Raises ConfigurationError."""
    if setting == "auto" and gmail:
        return _with_attribute(r"\All", mailboxes) or _refuse(
            "the mailbox of all mail is hidden: tick 'Show in IMAP' for All Mail in Gmail's settings (Labels), "
            "or set IMAP_MAILBOX=INBOX"
        )
    if setting == "auto" or setting.upper() == INBOX:  # of any case (RFC 3501, section 5.1), and always there
        return ListedMailbox(INBOX.encode(), INBOX, frozenset())
    if setting.startswith("\\"):
        return _with_attribute(setting, mailboxes) or _refuse(
            f"IMAP_MAILBOX {setting}: no mailbox has this attribute, or it is hidden from IMAP"
        )
    return _named(setting, mailboxes) or _refuse(_missing(setting, mailboxes))


def has_attribute(setting: str, mailboxes: Sequence[ListedMailbox]) -> bool:
    """Whether a mailbox has this attribute."""
    return _with_attribute(setting, mailboxes) is not None


def _entries(responses: Iterable[Any]) -> Iterator[ListedMailbox]:
    for line in _lines(responses):
        entry = _ENTRY.match(line)
        if not entry:
            continue
        name = entry["name"]
        if name.startswith(b'"'):
            quoted = _QUOTED.match(name)  # not every server escapes the quotes in a name
            name = re.sub(rb"\\(.)", rb"\1", quoted[1] if quoted else name.rstrip()[1:].removesuffix(b'"'))
        delimiter = entry["delimiter"][1:-1].removeprefix(b"\\")
        if delimiter and name != delimiter:  # some list one that may have others below it with a delimiter at its end
            name = name.removesuffix(delimiter)
        attributes = {word.decode("ascii", "replace").lower() for word in (entry["attributes"] or b"").split()}
        attributes |= {OTHER_ATTRIBUTES[word] for word in attributes & OTHER_ATTRIBUTES.keys()}
        if r"\nonexistent" not in attributes:
            yield ListedMailbox(name, decode_name(name), frozenset(attributes))


def _lines(responses: Iterable[Any]) -> Iterator[bytes]:
    """Yield the responses with their literals as quoted strings: a delimiter may be one, too."""
    line = b""
    for response in responses:
        if isinstance(response, tuple):
            head, literal = response
            line += _LITERAL_END.sub(b"", head) + b'"' + re.sub(rb'(["\\])', rb"\\\1", literal) + b'"'
        else:
            yield line + (response or b"")
            line = b""


def _decoded(found: re.Match[str]) -> str:
    """Return what a shifted sequence means, or the sequence itself where it cannot be one."""
    if not found[1]:
        return "&"
    coded = found[1].replace(",", "/")
    try:
        text = binascii.a2b_base64(coded + "=" * (-len(coded) % 4)).decode("utf-16-be")
    except ValueError:
        return found[0]
    whole = encode_name(text) == found[0].encode() or not text.isascii()
    return text if text and whole and not any(unicodedata.category(letter) == "Cc" for letter in text) else found[0]


def _named(setting: str, mailboxes: Sequence[ListedMailbox]) -> ListedMailbox | None:
    """Return the mailbox of this name, as people or as the server write it; letters may be composed in any way."""
    wanted, mailboxes = unicodedata.normalize("NFC", setting), _selectable_first(mailboxes)
    for each in mailboxes:
        if each.name == setting or each.raw == setting.encode():
            return each
    return next((each for each in mailboxes if unicodedata.normalize("NFC", each.name) == wanted), None)


def _with_attribute(attribute: str, mailboxes: Sequence[ListedMailbox]) -> ListedMailbox | None:
    return next((each for each in _selectable_first(mailboxes) if attribute.lower() in each.attributes), None)


def _selectable_first(mailboxes: Sequence[ListedMailbox]) -> list[ListedMailbox]:
    """Return them with those at the end that cannot be opened: some servers list one name, or use, several times."""
    return sorted(mailboxes, key=lambda each: r"\noselect" in each.attributes)


def _missing(setting: str, mailboxes: Sequence[ListedMailbox]) -> str:
    names = [each.name[:SHOWN_LETTERS] for each in mailboxes]
    if setting.startswith(" ") or setting.endswith(" "):
        return f"IMAP_MAILBOX {setting!r} does not exist: a blank at its end counts"
    comma = "; a comma within a name is written \\," if any("," in name for name in names) else ""
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return f"IMAP_MAILBOX {setting!r} does not exist; there are: {', '.join(names[:SHOWN_NAMES])}{more}{comma}"


def _refuse(message: str) -> ListedMailbox:
    raise ConfigurationError(message)
