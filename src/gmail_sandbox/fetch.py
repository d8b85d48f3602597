"""What FETCH can ask for, and how the answer is spelled: Gmail's own items first, UID after them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gmail_sandbox import bodystructure as structure
from gmail_sandbox import folders, mime, wire
from gmail_sandbox.wire import Node, ParseError, Token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gmail_sandbox.mailbox import Entry
    from gmail_sandbox.message import Message
    from gmail_sandbox.session import Session

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
    rb"BODY(?P<peek>\.PEEK)?\[(?P<path>\d+(?:\.\d+)*)?\.?(?P<what>HEADER\.FIELDS(?:\.NOT)?|HEADER|TEXT|MIME)?"
    rb"(?: \((?P<fields>[^)]*)\))?\](?:<(?P<from>\d+)\.(?P<count>\d+)>)?",
    re.IGNORECASE,
)
_PARSED = (b"ENVELOPE", b"BODY", b"BODYSTRUCTURE")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(frozen=True)
class Section:
    """A part of the body that was asked for; `name` is how the answer calls it."""

    name: bytes
    path: tuple[int, ...]
    what: bytes
    fields: tuple[bytes, ...] = ()
    partial: tuple[int, int] | None = None
    peek: bool = True

    @property
    def is_body(self) -> bool:
        """Tell whether this downloads content, not only header fields."""
        return self.what in (b"", b"TEXT")


@dataclass
class Plan:
    """All that one FETCH asks for."""

    attributes: set[bytes] = field(default_factory=set)
    sections: list[Section] = field(default_factory=list)
    changed_since: int | None = None

    @property
    def reads_bodies(self) -> bool:
        """Tell whether content is downloaded."""
        return any(section.is_body for section in self.sections)

    @property
    def marks_seen(self) -> bool:
        r"""Tell whether reading sets \Seen (RFC 3501 section 6.4.5)."""
        return any(not section.peek for section in self.sections)


def parse_plan(items: Node, modifiers: list[Node]) -> Plan:
    """Return what the items of a FETCH ask for."""
    plan = Plan()
    for node in wire.list_of(items):
        _add_item(plan, wire.text_of(node))
    if modifiers:
        _add_modifiers(plan, wire.list_of(modifiers[0]))
    return plan


def _add_item(plan: Plan, item: bytes) -> None:
    name = item.upper()
    if name in _MACROS:
        plan.attributes.update(_MACROS[name])
    elif name in _RFC822:
        plan.sections.append(_section(_RFC822[name], called=name))
    elif name in _ORDER:
        plan.attributes.add(name)
    else:
        plan.sections.append(_section(item))


def _section(item: bytes, called: bytes | None = None) -> Section:
    match = _SECTION.fullmatch(item)
    if match is None:
        message = f"unknown FETCH item {item!r}"
        raise ParseError(message)
    path = tuple(int(number) for number in match["path"].split(b".")) if match["path"] else ()
    fields = tuple(name.strip(b'"') for name in match["fields"].split()) if match["fields"] else ()
    partial = (int(match["from"]), int(match["count"])) if match["from"] else None
    inside = item[item.index(b"[") : item.rindex(b"]") + 1]
    name = called or b"BODY" + inside + (b"<%d>" % partial[0] if partial else b"")
    return Section(name, path, (match["what"] or b"").upper(), fields, partial, peek=match["peek"] is not None)


def _add_modifiers(plan: Plan, modifiers: list[Node]) -> None:
    for at, node in enumerate(modifiers):
        if isinstance(node, Token) and node.upper() == b"CHANGEDSINCE" and at + 1 < len(modifiers):
            plan.changed_since = wire.number_of(modifiers[at + 1])
            plan.attributes.add(b"MODSEQ")  # RFC 7162 section 3.1.4.1


def render(entry: Entry, plan: Plan, session: Session) -> Iterator[bytes | memoryview]:
    """Return one FETCH answer as pieces; a memoryview is the content of a literal."""
    raw = session.backend.account.raw(entry.message) if _needs_raw(plan) else b""
    root = mime.parse(raw) if _needs_structure(plan) else None
    values = [name + b" " + _value(name, entry, session, root) for name in _ORDER if name in plan.attributes]
    yield b"* %d FETCH (" % entry.number + b" ".join(values)
    gap = b" " if values else b""
    for section in plan.sections:
        content = _content(section, raw, root)
        if content is None:
            yield gap + section.name + b" NIL"
        else:
            yield b"%s%s {%d}\r\n" % (gap, section.name, len(content))
            yield content
        gap = b" "
    yield b")\r\n"


def _needs_raw(plan: Plan) -> bool:
    return bool(plan.sections) or not plan.attributes.isdisjoint(_PARSED)


def _needs_structure(plan: Plan) -> bool:
    return any(s.path or s.what for s in plan.sections) or not plan.attributes.isdisjoint(_PARSED)


def _value(name: bytes, entry: Entry, session: Session, root: mime.Part | None) -> bytes:
    if root is None or name not in _PARSED:
        return _PLAIN[name](entry, session)
    if name == b"ENVELOPE":
        return structure.envelope(root)
    return structure.body_structure(root, extended=name == b"BODYSTRUCTURE")


def labels(message: Message, session: Session) -> bytes:
    """Return X-GM-LABELS: without the label of the selected mailbox, system labels quoted and first."""
    omitted = session.selected.mailbox.key
    shown = [label for label in folders.SYSTEM_LABELS if label in message.labels]
    shown += sorted(message.labels.difference(folders.SYSTEM_LABELS))
    spelled = [wire.label(label, utf8=session.utf8) for label in shown if label != omitted]
    return b"(" + b" ".join(spelled) + b")"


def flags(message: Message) -> bytes:
    """Return the flags as a list."""
    return b"(" + " ".join(sorted(message.flags)).encode() + b")"


def internal_date(milliseconds: int) -> bytes:
    """Return an INTERNALDATE in UTC."""
    when = datetime.fromtimestamp(milliseconds / 1000, UTC)
    text = f'"{when.day:02}-{_MONTHS[when.month - 1]}-{when:%Y %H:%M:%S} +0000"'
    return text.encode()


_PLAIN: dict[bytes, Callable[[Entry, Session], bytes]] = {
    b"X-GM-THRID": lambda entry, _session: b"%d" % entry.message.thrid,
    b"X-GM-MSGID": lambda entry, _session: b"%d" % entry.message.msgid,
    b"X-GM-LABELS": lambda entry, session: labels(entry.message, session),
    b"UID": lambda entry, _session: b"%d" % entry.uid,
    b"RFC822.SIZE": lambda entry, _session: b"%d" % entry.message.size,
    b"MODSEQ": lambda entry, _session: b"(%d)" % entry.message.modseq,
    b"INTERNALDATE": lambda entry, _session: internal_date(entry.message.internaldate),
    b"FLAGS": lambda entry, _session: flags(entry.message),
}


def flags_line(entry: Entry, session: Session, *, uid: bool = True) -> bytes:
    """Return the untagged answer about changed flags, with MODSEQ once the session asked for CONDSTORE."""
    parts = [b"UID %d" % entry.uid] if uid else []
    if session.condstore:
        parts.append(b"MODSEQ (%d)" % entry.message.modseq)
    parts.append(b"FLAGS " + flags(entry.message))
    return b"* %d FETCH (%s)\r\n" % (entry.number, b" ".join(parts))


def _content(section: Section, raw: bytes, root: mime.Part | None) -> memoryview | None:
    content: bytes | None = raw
    if root is not None and (section.path or section.what):
        content = mime.section(root, section.path, section.what, section.fields)
    if content is None:
        return None
    view = memoryview(content)
    if section.partial is not None:
        start, count = section.partial
        view = view[start : start + count]
    return view
