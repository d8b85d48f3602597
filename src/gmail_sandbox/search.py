"""SEARCH: parses a command into ranges of candidates and tests on them (RFC 3501 section 6.4.4, Gmail's X-GM keys).

UID sets and X-GM-MSGID narrow the candidates first, so that a search at the end of a large mailbox is cheap.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from typing import TypeAlias

from gmail_sandbox import gmail_query, imap_syntax, sequence_sets
from gmail_sandbox.account import GmailAccount
from gmail_sandbox.imap_syntax import ImapToken, Node, ParseError, list_of, text_of
from gmail_sandbox.mailbox import MailboxEntry, Selection
from gmail_sandbox.searchable_text import SearchableText
from gmail_sandbox.session import CommandRefused, Session

Test: TypeAlias = Callable[[MailboxEntry, SearchableText], bool]

_YIELD_EVERY = 500
_MONTHS = {
    name: number
    for number, name in enumerate("jan feb mar apr may jun jul aug sep oct nov dec".split(), start=1)  # noqa: SIM905
}
_FLAG_KEYS = {
    b"ANSWERED": "\\Answered",
    b"DELETED": "\\Deleted",
    b"DRAFT": "\\Draft",
    b"FLAGGED": "\\Flagged",
    b"SEEN": "\\Seen",
}
_HEADER_KEYS = (b"FROM", b"TO", b"CC", b"BCC", b"SUBJECT")
_DATE_KEYS: dict[bytes, Callable[[date, date], bool]] = {
    b"SINCE": lambda have, want: have >= want,
    b"BEFORE": lambda have, want: have < want,
    b"ON": lambda have, want: have == want,
}


@dataclass
class SearchProgram:
    """A parsed search: all tests must hold for a candidate."""

    tests: list[Test] = field(default_factory=list)
    ranges: list[list[range]] = field(default_factory=list)
    msgid: int | None = None
    uses_modseq: bool = False


class SearchParser:
    """Reads search keys one after the other."""

    def __init__(self, nodes: list[Node], selection: Selection, charset: str) -> None:
        """Take the keys after CHARSET and RETURN were removed."""
        self._nodes, self._selection, self._charset = list(nodes), selection, charset
        self.program = SearchProgram()

    def parse(self) -> SearchProgram:
        """Return the program for all keys."""
        if not self._nodes:
            raise ParseError("SEARCH needs a key")
        while self._nodes:
            if not self._narrow():
                self.program.tests.append(self._key())
        return self.program

    def _narrow(self) -> bool:
        """Take a top-level key that limits the candidates without looking at them."""
        token = self._nodes[0]
        if not isinstance(token, ImapToken):
            return False
        name = token.upper()
        if name == b"ALL":
            self._nodes.pop(0)
        elif name == b"UID":
            self._nodes.pop(0)
            self.program.ranges.append(self._set(self._text(), by_uid=True))
        elif sequence_sets.is_set(name) and not token.is_quoted:
            self._nodes.pop(0)
            self.program.ranges.append(self._set(name, by_uid=False))
        elif name == b"X-GM-MSGID":
            self._nodes.pop(0)
            self.program.msgid = self._number()
        else:
            return False
        return True

    def _set(self, value: bytes, *, by_uid: bool) -> list[range]:
        return self._selection.indexes(sequence_sets.parse_set(value), by_uid=by_uid)

    def _next(self) -> Node:
        if not self._nodes:
            raise ParseError("a search key lacks its argument")
        return self._nodes.pop(0)

    def _text(self) -> bytes:
        return imap_syntax.text_of(self._next())

    def _string(self) -> str:
        try:
            return self._text().decode(self._charset)
        except UnicodeDecodeError as error:
            # Observed on Gmail: raw UTF-8 without CHARSET is not understood.
            raise ParseError(str(error)) from error

    def _number(self) -> int:
        return imap_syntax.number_of(self._next())

    def _key(self) -> Test:
        node = self._next()
        if isinstance(node, list):
            return self._group(node)
        name = node.upper()
        if sequence_sets.is_set(name) and not node.is_quoted:
            return _in_ranges(self._set(name, by_uid=False))
        for family in (self._simple, self._flags, self._texts, self._dates, self._numbers, self._gmail):
            test = family(name)
            if test is not None:
                return test
        raise ParseError(f"unknown search key {name!r}")

    def _group(self, nodes: list[Node]) -> Test:
        inner = SearchParser(nodes, self._selection, self._charset)
        tests = []
        while inner._nodes:
            tests.append(inner._key())
        return lambda entry, content: all(test(entry, content) for test in tests)

    def _simple(self, name: bytes) -> Test | None:
        match name:
            case b"ALL" | b"OLD":
                return lambda _entry, _content: True
            case b"NEW" | b"RECENT":  # RECENT is always 0 on Gmail
                return lambda _entry, _content: False
            case b"NOT":
                inner = self._key()
                return lambda entry, content: not inner(entry, content)
            case b"OR":
                first, second = self._key(), self._key()
                return lambda entry, content: first(entry, content) or second(entry, content)
            case b"UID":
                return _in_ranges(self._set(self._text(), by_uid=True))
            case _:
                return None

    def _flags(self, name: bytes) -> Test | None:
        if name in (b"KEYWORD", b"UNKEYWORD"):
            flag, expected = self._string(), name == b"KEYWORD"
        elif name in _FLAG_KEYS:
            flag, expected = _FLAG_KEYS[name], True
        elif name[:2] == b"UN" and name[2:] in _FLAG_KEYS:
            flag, expected = _FLAG_KEYS[name[2:]], False
        else:
            return None
        return lambda entry, _content: (flag in entry.message.flags) is expected

    def _texts(self, name: bytes) -> Test | None:
        if name in _HEADER_KEYS:
            field_name, needle = name.decode().lower(), self._string().casefold()
            return lambda _entry, content: needle in content.header(field_name)
        if name == b"HEADER":
            field_name, needle = self._string().lower(), self._string().casefold()
            return lambda _entry, content: content.has(field_name) and needle in content.header(field_name)
        if name in (b"TEXT", b"BODY"):
            needle, whole = self._string().casefold(), name == b"TEXT"
            return lambda _entry, content: needle in (content.text() if whole else content.body())
        return None

    def _dates(self, name: bytes) -> Test | None:
        sent = name.startswith(b"SENT")
        compare = _DATE_KEYS.get(name.removeprefix(b"SENT"))
        if compare is None:
            return None
        limit = _date(self._text())
        if sent:
            return lambda _entry, content: (when := _sent_date(content)) is not None and compare(when, limit)
        return lambda entry, _content: compare(_arrival_date(entry), limit)

    def _numbers(self, name: bytes) -> Test | None:
        if name not in (b"LARGER", b"SMALLER", b"MODSEQ"):
            return None
        if name == b"MODSEQ":
            return self._modseq()
        limit = self._number()
        if name == b"LARGER":
            return lambda entry, _content: entry.message.size > limit
        return lambda entry, _content: entry.message.size < limit

    def _modseq(self) -> Test:
        self.program.uses_modseq = True
        node = self._next()
        if isinstance(node, ImapToken) and node.is_quoted:  # entry name and type (RFC 7162 section 3.1.5)
            self._next()
            node = self._next()
        limit = imap_syntax.number_of(node)
        return lambda entry, _content: entry.message.modseq >= limit

    def _gmail(self, name: bytes) -> Test | None:
        match name:
            case b"X-GM-MSGID":
                msgid = self._number()
                return lambda entry, _content: entry.message.msgid == msgid
            case b"X-GM-THRID":
                thrid = self._number()
                return lambda entry, _content: entry.message.thrid == thrid
            case b"X-GM-LABELS":
                return self._label()
            case b"X-GM-RAW":
                query = gmail_query.parse(self._string())
                return lambda entry, content: query(entry.message, content)
            case _:
                return None

    def _label(self) -> Test:
        token = self._next()
        label = imap_syntax.text_of(token).decode(self._charset, "replace")
        if isinstance(token, ImapToken) and not token.is_quoted and label.startswith("\\"):
            raise ParseError("system labels must be quoted in SEARCH")
        folded_label = label.casefold()
        return lambda entry, _content: any(own.casefold() == folded_label for own in entry.message.labels)


def _in_ranges(ranges: list[range]) -> Test:
    return lambda entry, _content: any(entry.number - 1 in part for part in ranges)


def _date(text: bytes) -> date:
    try:
        day, month, year = text.decode("ascii").split("-")
        return date(int(year), _MONTHS[month.lower()], int(day))
    except (ValueError, KeyError) as error:
        raise ParseError(f"{text!r} is not a date") from error


def _arrival_date(entry: MailboxEntry) -> date:
    return datetime.fromtimestamp(entry.message.internaldate / 1000, UTC).date()


def _sent_date(content: SearchableText) -> date | None:
    try:
        return parsedate_to_datetime(content.header("date")).date()
    except (ValueError, TypeError):
        return None


async def run(program: SearchProgram, selection: Selection, account: GmailAccount) -> list[MailboxEntry]:
    """Return the matching entries in order; let other sessions run in between."""
    found: list[MailboxEntry] = []
    for count, entry in enumerate(_candidates(program, selection), start=1):
        if count % _YIELD_EVERY == 0:
            await asyncio.sleep(0)
        content = SearchableText(account, entry.message)
        if all(test(entry, content) for test in program.tests):
            found.append(entry)
    return found


def _candidates(program: SearchProgram, selection: Selection) -> Iterator[MailboxEntry]:
    ranges = min(program.ranges or [selection.all_indexes()], key=lambda parts: sum(map(len, parts)))
    others = [parts for parts in program.ranges if parts is not ranges]
    if program.msgid is not None:
        entry = selection.find_by_msgid(program.msgid)
        candidates = [] if entry is None else [entry]
        others = program.ranges
    else:
        # A copy, because the view may change while a long search lets others run.
        candidates = selection.entries(ranges)  # type: ignore[assignment]
    for entry in candidates:
        if all(any(entry.number - 1 in part for part in parts) for parts in others):
            yield entry


_ALLOWED_CHARSETS = ("utf-8", "us-ascii")


async def search(session: Session, args: list[Node], *, by_uid: bool = False) -> str:
    """Run SEARCH or UID SEARCH, plain or extended (RFC 4731)."""
    nodes, returned = _without_return(args)
    nodes, charset = _without_charset(nodes)
    selection = session.selected
    program = SearchParser(nodes, selection, charset).parse()
    found = await run(program, selection, session.backend.account)
    session.raise_if_ended()
    numbers = [entry.uid if by_uid else entry.number for entry in found]
    modseq = max((entry.message.modseq for entry in found), default=0) if program.uses_modseq else 0
    if returned is None:
        listed = b"".join(b" %d" % number for number in numbers)
        tail = b" (MODSEQ %d)" % modseq if modseq else b""
        await session.send(b"* SEARCH" + listed + tail)
    else:
        await session.send(_esearch(session, numbers, returned, modseq, by_uid=by_uid))
    return "OK SEARCH completed (Success)"


def _without_return(args: list[Node]) -> tuple[list[Node], list[bytes] | None]:
    if len(args) > 1 and isinstance(args[0], ImapToken) and args[0].upper() == b"RETURN":
        return args[2:], [text_of(item).upper() for item in list_of(args[1])] or [b"ALL"]
    return args, None


def _without_charset(args: list[Node]) -> tuple[list[Node], str]:
    if len(args) > 1 and isinstance(args[0], ImapToken) and args[0].upper() == b"CHARSET":
        charset = text_of(args[1]).decode("ascii", "replace").lower()
        if charset not in _ALLOWED_CHARSETS:
            raise CommandRefused("NO [BADCHARSET (UTF-8 US-ASCII)] Unknown charset (Failure)")
        return args[2:], charset
    return args, "us-ascii"


def _esearch(session: Session, numbers: list[int], returned: list[bytes], modseq: int, *, by_uid: bool) -> bytes:
    line = b'* ESEARCH (TAG "%s")' % session.tag + (b" UID" if by_uid else b"")
    for item in returned:
        if item == b"COUNT":
            line += b" COUNT %d" % len(numbers)
        elif item == b"MIN" and numbers:
            line += b" MIN %d" % numbers[0]
        elif item == b"MAX" and numbers:
            line += b" MAX %d" % numbers[-1]
        elif item == b"ALL" and numbers:
            line += b" ALL " + sequence_sets.compact(numbers)
    return line + (b" MODSEQ %d" % modseq if modseq else b"")
