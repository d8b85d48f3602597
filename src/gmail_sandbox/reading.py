"""FETCH and SEARCH as commands: which messages, in which order, and what the armed faults do to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gmail_sandbox import fetch, search
from gmail_sandbox import sequence_sets as sets
from gmail_sandbox.backend import EXPIRED
from gmail_sandbox.fetch import Plan
from gmail_sandbox.session import Refused, Session
from gmail_sandbox.wire import Node, ParseError, Token, list_of, text_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gmail_sandbox.mailbox import Entry

_ALLOWED_CHARSETS = ("utf-8", "us-ascii")


async def fetch_(session: Session, args: list[Node], *, by_uid: bool = False) -> str:
    """Run FETCH or UID FETCH."""
    if len(args) < 2:  # noqa: PLR2004
        message = "FETCH needs a set and items"
        raise ParseError(message)
    plan = fetch.parse_plan(args[1], args[2:])
    if by_uid:
        plan.attributes.add(b"UID")
    if b"MODSEQ" in plan.attributes:
        session.condstore = True
    selection = session.selected
    ranges = selection.indexes(sets.parse_set(text_of(args[0])), by_uid=by_uid)
    uids = [selection.uids[index] for part in ranges for index in part]
    if plan.reads_bodies and (dropped := session.backend.faults.take("drop_fetch")):
        session.channel.end_after(int(dropped.number("after_bytes")))
    partial = _partial(session, uids, plan)
    await _send_all(session, ranges, plan, partial.left_out)
    return partial.answer


class _Partial(NamedTuple):
    left_out: frozenset[int] = frozenset()
    answer: str = "OK Success"


def _partial(session: Session, uids: Sequence[int], plan: Plan) -> _Partial:
    """Return what a partial FETCH leaves out and says; a FETCH of one message is always complete."""
    fault = session.backend.faults.look("partial_fetch")
    if fault is None or len(uids) < 2 or (fault.is_on("bodies_only") and not plan.reads_bodies):  # noqa: PLR2004
        return _Partial()
    session.backend.faults.take("partial_fetch")
    left_out = frozenset(uids[-min(int(fault.number("missing")), len(uids)) :])
    suffix = " [THROTTLED]" if fault.is_on("throttled") else ""
    return _Partial(left_out, f"NO Some messages could not be FETCHed (Failure){suffix}")


async def _send_all(session: Session, ranges: list[range], plan: Plan, left_out: frozenset[int]) -> None:
    sent = 0
    for entry in session.selected.entries(ranges):
        if entry.uid in left_out or (plan.changed_since or -1) >= entry.message.modseq:
            continue
        _maybe_system_error(session, entry, plan)
        await _send_one(session, entry, plan)
        sent += 1
        _maybe_expire(session, sent)
        session.check()


def _maybe_system_error(session: Session, entry: Entry, plan: Plan) -> None:
    fault = session.backend.faults.look("uid_system_error")
    if fault is None or fault.number("uid") != entry.uid:
        return
    if fault.is_on("bodies_only") and not plan.reads_bodies:
        return
    session.backend.faults.take("uid_system_error")
    reason = "NO System Error (Failure)"
    raise Refused(reason)


def _maybe_expire(session: Session, sent: int) -> None:
    fault = session.backend.faults.look("session_expiry")
    if fault is not None and fault.text("when") == "fetch" and sent >= fault.number("after_messages"):
        session.backend.faults.take("session_expiry")
        session.end(EXPIRED)


async def _send_one(session: Session, entry: Entry, plan: Plan) -> None:
    marked = _mark_seen(session, entry, plan)
    if plan.reads_bodies and all(s.partial is None or s.partial[0] == 0 for s in plan.sections if s.is_body):
        session.backend.stats.body_fetched(session.selected.mailbox.key, entry.uid, entry.message.msgid)
    shown = Plan(plan.attributes | {b"FLAGS"}, plan.sections) if marked else plan
    text = b""
    for piece in fetch.render(entry, shown, session):
        if isinstance(piece, memoryview):
            await session.channel.send(text)
            await session.channel.send_body(piece)
            text = b""
        else:
            text += piece
    await session.channel.send(text)


def _mark_seen(session: Session, entry: Entry, plan: Plan) -> bool:
    if not plan.marks_seen or session.selected.readonly or "\\Seen" in entry.message.flags:
        return False
    session.backend.account.set_flags(entry.message.msgid, entry.message.flags | {"\\Seen"})
    session.selected.forget_change(entry.uid)
    return True


async def search_(session: Session, args: list[Node], *, by_uid: bool = False) -> str:
    """Run SEARCH or UID SEARCH, plain or extended (RFC 4731)."""
    nodes, returned = _without_return(args)
    nodes, charset = _without_charset(nodes)
    selection = session.selected
    program = search.Parser(nodes, selection, charset).parse()
    found = await search.run(program, selection)
    session.check()
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
    if len(args) > 1 and isinstance(args[0], Token) and args[0].upper() == b"RETURN":
        return args[2:], [text_of(item).upper() for item in list_of(args[1])] or [b"ALL"]
    return args, None


def _without_charset(args: list[Node]) -> tuple[list[Node], str]:
    if len(args) > 1 and isinstance(args[0], Token) and args[0].upper() == b"CHARSET":
        charset = text_of(args[1]).decode("ascii", "replace").lower()
        if charset not in _ALLOWED_CHARSETS:
            reason = "NO [BADCHARSET (UTF-8 US-ASCII)] Unknown charset (Failure)"
            raise Refused(reason)
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
            line += b" ALL " + sets.compact(numbers)
    return line + (b" MODSEQ %d" % modseq if modseq else b"")
