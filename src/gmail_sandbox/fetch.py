"""FETCH: its items, the spelling of its answer (Gmail's own items first, then UID), and the faults that act on it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from gmail_sandbox import bodystructure as structure
from gmail_sandbox import folders, imap_syntax, mime
from gmail_sandbox.backend import EXPIRED
from gmail_sandbox.imap_syntax import ImapToken, Node, ParseError, list_of, text_of
from gmail_sandbox.sequence_sets import parse_set
from gmail_sandbox.session import CommandRefused, Session, format_flags

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gmail_sandbox.mailbox import MailboxEntry
    from gmail_sandbox.message import Message

# The order of an answer, whatever the order of the question.
_ORDER = (
    b"X-GM-THRID",
    b"X-GM-MSGID",
    b"X-GM-LABELS",
    b"UID",
    b"RFC822.SIZE",
    b"MODSEQ",
    b"INTERNALDATE",
    b"FLAGS",
    b"ENVELOPE",
    b"BODYSTRUCTURE",
    b"BODY",
)
_MACROS = {
    b"FAST": (b"FLAGS", b"INTERNALDATE", b"RFC822.SIZE"),
    b"ALL": (b"FLAGS", b"INTERNALDATE", b"RFC822.SIZE", b"ENVELOPE"),
    b"FULL": (b"FLAGS", b"INTERNALDATE", b"RFC822.SIZE", b"ENVELOPE", b"BODY"),
}
_RFC822 = {b"RFC822": b"BODY[]", b"RFC822.HEADER": b"BODY.PEEK[HEADER]", b"RFC822.TEXT": b"BODY[TEXT]"}
_SECTION = re.compile(
    rb"BODY(?P<peek>\.PEEK)?\[(?P<path>\d+(?:\.\d+)*)?\.?(?P<specifier>HEADER\.FIELDS(?:\.NOT)?|HEADER|TEXT|MIME)?"
    rb"(?: \((?P<fields>[^)]*)\))?\](?:<(?P<from>\d+)\.(?P<count>\d+)>)?",
    re.IGNORECASE,
)
_PARSED = (b"ENVELOPE", b"BODY", b"BODYSTRUCTURE")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(frozen=True)
class BodySection:
    """A requested part of the body; `name` is its name in the answer."""

    name: bytes
    path: tuple[int, ...]
    specifier: bytes
    fields: tuple[bytes, ...] = ()
    partial: tuple[int, int] | None = None
    peek: bool = True

    @property
    def is_body(self) -> bool:
        """Tell whether this downloads content, not only header fields."""
        return self.specifier in (b"", b"TEXT")


@dataclass
class FetchRequest:
    """The parsed items and modifiers of one FETCH."""

    attributes: set[bytes] = field(default_factory=set)
    sections: list[BodySection] = field(default_factory=list)
    changed_since: int | None = None

    @property
    def reads_bodies(self) -> bool:
        """Tell whether content is downloaded."""
        return any(section.is_body for section in self.sections)

    @property
    def marks_seen(self) -> bool:
        r"""Tell whether reading sets \Seen (RFC 3501 section 6.4.5)."""
        return any(not section.peek for section in self.sections)


def parse_request(items: Node, modifiers: list[Node]) -> FetchRequest:
    """Parse the items and modifiers of a FETCH; raise ParseError."""
    request = FetchRequest()
    for node in list_of(items):
        _add_item(request, text_of(node))
    if modifiers:
        _add_modifiers(request, list_of(modifiers[0]))
    return request


def _add_item(request: FetchRequest, item: bytes) -> None:
    name = item.upper()
    if name in _MACROS:
        request.attributes.update(_MACROS[name])
    elif name in _RFC822:
        request.sections.append(_section(_RFC822[name], called=name))
    elif name in _ORDER:
        request.attributes.add(name)
    else:
        request.sections.append(_section(item))


def _section(item: bytes, called: bytes | None = None) -> BodySection:
    match = _SECTION.fullmatch(item)
    if match is None:
        raise ParseError(f"unknown FETCH item {item!r}")
    path = tuple(int(number) for number in match["path"].split(b".")) if match["path"] else ()
    fields = tuple(name.strip(b'"') for name in match["fields"].split()) if match["fields"] else ()
    partial = (int(match["from"]), int(match["count"])) if match["from"] else None
    inside = item[item.index(b"[") : item.rindex(b"]") + 1]
    name = called or b"BODY" + inside + (b"<%d>" % partial[0] if partial else b"")
    return BodySection(name, path, (match["specifier"] or b"").upper(), fields, partial, peek=match["peek"] is not None)


def _add_modifiers(request: FetchRequest, modifiers: list[Node]) -> None:
    for at, node in enumerate(modifiers):
        if isinstance(node, ImapToken) and node.upper() == b"CHANGEDSINCE" and at + 1 < len(modifiers):
            request.changed_since = imap_syntax.number_of(modifiers[at + 1])
            request.attributes.add(b"MODSEQ")  # RFC 7162 section 3.1.4.1


def render(entry: MailboxEntry, request: FetchRequest, session: Session) -> Iterator[bytes | memoryview]:
    """Return one FETCH answer as pieces; a memoryview is the content of a literal."""
    raw = session.backend.account.raw(entry.message) if _needs_raw(request) else b""
    root = mime.parse(raw) if _needs_structure(request) else None
    values = [name + b" " + _value(name, entry, session, root) for name in _ORDER if name in request.attributes]
    yield b"* %d FETCH (" % entry.number + b" ".join(values)
    gap = b" " if values else b""
    for section in request.sections:
        content = _content(section, raw, root)
        if content is None:
            yield gap + section.name + b" NIL"
        else:
            yield b"%s%s {%d}\r\n" % (gap, section.name, len(content))
            yield content
        gap = b" "
    yield b")\r\n"


def _needs_raw(request: FetchRequest) -> bool:
    return bool(request.sections) or not request.attributes.isdisjoint(_PARSED)


def _needs_structure(request: FetchRequest) -> bool:
    return any(s.path or s.specifier for s in request.sections) or not request.attributes.isdisjoint(_PARSED)


def _value(name: bytes, entry: MailboxEntry, session: Session, root: mime.MimePart | None) -> bytes:
    if root is None or name not in _PARSED:
        return _PLAIN[name](entry, session)
    if name == b"ENVELOPE":
        return structure.envelope(root)
    return structure.body_structure(root, extended=name == b"BODYSTRUCTURE")


def format_labels(message: Message, session: Session) -> bytes:
    """Return X-GM-LABELS: without the label of the selected mailbox, system labels quoted and first."""
    omitted = session.selected.mailbox.key
    visible = [label for label in folders.SYSTEM_LABELS if label in message.labels]
    visible += sorted(message.labels.difference(folders.SYSTEM_LABELS))
    spelled = [imap_syntax.format_label(label, utf8=session.utf8) for label in visible if label != omitted]
    return b"(" + b" ".join(spelled) + b")"


def format_internal_date(milliseconds: int) -> bytes:
    """Return an INTERNALDATE in UTC."""
    when = datetime.fromtimestamp(milliseconds / 1000, UTC)
    text = f'"{when.day:02}-{_MONTHS[when.month - 1]}-{when:%Y %H:%M:%S} +0000"'
    return text.encode()


_PLAIN: dict[bytes, Callable[[MailboxEntry, Session], bytes]] = {
    b"X-GM-THRID": lambda entry, _session: b"%d" % entry.message.thrid,
    b"X-GM-MSGID": lambda entry, _session: b"%d" % entry.message.msgid,
    b"X-GM-LABELS": lambda entry, session: format_labels(entry.message, session),
    b"UID": lambda entry, _session: b"%d" % entry.uid,
    b"RFC822.SIZE": lambda entry, _session: b"%d" % entry.message.size,
    b"MODSEQ": lambda entry, _session: b"(%d)" % entry.message.modseq,
    b"INTERNALDATE": lambda entry, _session: format_internal_date(entry.message.internaldate),
    b"FLAGS": lambda entry, _session: format_flags(entry.message),
}


def _content(section: BodySection, raw: bytes, root: mime.MimePart | None) -> memoryview | None:
    content: bytes | None = raw
    if root is not None and (section.path or section.specifier):
        content = mime.section(root, section.path, section.specifier, section.fields)
    if content is None:
        return None
    view = memoryview(content)
    if section.partial is not None:
        start, count = section.partial
        view = view[start : start + count]
    return view


async def fetch(session: Session, args: list[Node], *, by_uid: bool = False) -> str:
    """Run FETCH or UID FETCH."""
    if len(args) < 2:  # noqa: PLR2004
        raise ParseError("FETCH needs a set and items")
    request = parse_request(args[1], args[2:])
    if by_uid:
        request.attributes.add(b"UID")
    if b"MODSEQ" in request.attributes:
        session.condstore = True
    selection = session.selected
    ranges = selection.indexes(parse_set(text_of(args[0])), by_uid=by_uid)
    uids = [selection.uids[index] for part in ranges for index in part]
    if request.reads_bodies and (dropped := session.backend.faults.consume("drop_fetch")):
        session.connection.limit_output(int(dropped.get_number("after_bytes")))
    partial = _apply_partial_fetch(session, uids, request)
    await _send_all(session, ranges, request, partial.omitted)
    return partial.answer


class _PartialAnswer(NamedTuple):
    omitted: frozenset[int] = frozenset()
    answer: str = "OK Success"


def _apply_partial_fetch(session: Session, uids: Sequence[int], request: FetchRequest) -> _PartialAnswer:
    """Return the UIDs that a partial FETCH omits, and its answer; a FETCH of one message is always complete."""
    fault = session.backend.faults.get("partial_fetch")
    if fault is None or len(uids) < 2 or (fault.is_enabled("bodies_only") and not request.reads_bodies):  # noqa: PLR2004
        return _PartialAnswer()
    session.backend.faults.consume("partial_fetch")
    omitted = frozenset(uids[-min(int(fault.get_number("missing")), len(uids)) :])
    suffix = " [THROTTLED]" if fault.is_enabled("throttled") else ""
    return _PartialAnswer(omitted, f"NO Some messages could not be FETCHed (Failure){suffix}")


async def _send_all(session: Session, ranges: list[range], request: FetchRequest, omitted: frozenset[int]) -> None:
    sent = 0
    for entry in session.selected.entries(ranges):
        if entry.uid in omitted or (request.changed_since or -1) >= entry.message.modseq:
            continue
        _apply_system_error(session, entry, request)
        await _send_one(session, entry, request)
        sent += 1
        _apply_session_expiry(session, sent)
        session.raise_if_ended()


def _apply_system_error(session: Session, entry: MailboxEntry, request: FetchRequest) -> None:
    fault = session.backend.faults.get("uid_system_error")
    if fault is None or fault.get_number("uid") != entry.uid:
        return
    if fault.is_enabled("bodies_only") and not request.reads_bodies:
        return
    session.backend.faults.consume("uid_system_error")
    raise CommandRefused("NO System Error (Failure)")


def _apply_session_expiry(session: Session, sent: int) -> None:
    fault = session.backend.faults.get("session_expiry")
    if fault is not None and fault.get_text("when") == "fetch" and sent >= fault.get_number("after_messages"):
        session.backend.faults.consume("session_expiry")
        session.end(EXPIRED)


async def _send_one(session: Session, entry: MailboxEntry, request: FetchRequest) -> None:
    marked = _mark_seen(session, entry, request)
    if request.reads_bodies and all(s.partial is None or s.partial[0] == 0 for s in request.sections if s.is_body):
        session.backend.stats.count_body(session.selected.mailbox.key, entry.uid, entry.message.msgid)
    request = FetchRequest(request.attributes | {b"FLAGS"}, request.sections) if marked else request
    text = b""
    for piece in render(entry, request, session):
        if isinstance(piece, memoryview):
            await session.connection.send(text)
            await session.connection.send_body(piece)
            text = b""
        else:
            text += piece
    await session.connection.send(text)


def _mark_seen(session: Session, entry: MailboxEntry, request: FetchRequest) -> bool:
    if not request.marks_seen or session.selected.readonly or "\\Seen" in entry.message.flags:
        return False
    session.backend.account.set_flags(entry.message.msgid, entry.message.flags | {"\\Seen"})
    session.selected.forget_change(entry.uid)
    return True
