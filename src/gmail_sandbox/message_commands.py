"""Commands that change the mailbox: STORE, COPY, MOVE, EXPUNGE, CLOSE and APPEND.

A program that only reads mail never sends them; tests use them to act as the user's other clients.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from gmail_sandbox import fetch, folders, sequence_sets
from gmail_sandbox.imap_syntax import ImapToken, Node, ParseError, list_of, name_of, number_of, text_of
from gmail_sandbox.mailbox_commands import own_label, printable_name
from gmail_sandbox.message import Message, MessageLocation
from gmail_sandbox.session import CommandRefused, Session, flags_update

if TYPE_CHECKING:
    from gmail_sandbox.mailbox import Mailbox, MailboxEntry


async def store(session: Session, args: list[Node], *, by_uid: bool = False) -> str:
    """Run STORE or UID STORE on flags or labels, with UNCHANGEDSINCE (RFC 7162 section 3.1.3)."""
    entries = _entries(session, args, by_uid=by_uid)
    unchanged_since, rest = _unchanged_since(args[1:])
    if len(rest) < 2:  # noqa: PLR2004
        raise ParseError("STORE needs an item and values")
    _require_writable(session)
    request = _parse_store(rest, session)
    failed = []
    for entry in entries:
        if unchanged_since is not None and entry.message.modseq > unchanged_since:
            failed.append(entry.uid if by_uid else entry.number)
            continue
        await _store_one(session, entry, request, by_uid=by_uid)
    if failed:
        return f"OK [MODIFIED {sequence_sets.compact(failed).decode()}] Conditional Store Failed (Success)"
    return "OK Success"


def _entries(session: Session, args: list[Node], *, by_uid: bool) -> list[MailboxEntry]:
    if not args:
        raise ParseError("a sequence set is needed")
    selection = session.selected
    return list(selection.entries(selection.indexes(sequence_sets.parse_set(text_of(args[0])), by_uid=by_uid)))


def _unchanged_since(args: list[Node]) -> tuple[int | None, list[Node]]:
    if args and isinstance(args[0], list) and len(args[0]) == 2:  # noqa: PLR2004
        name, value = args[0]
        if text_of(name).upper() == b"UNCHANGEDSINCE":
            return number_of(value), args[1:]
    return None, args


@dataclass(frozen=True)
class _StoreRequest:
    """The parsed item of a STORE: `sign` is plus, minus, or empty for replace."""

    sign: bytes
    name: bytes
    values: list[str]
    silent: bool


def _parse_store(nodes: list[Node], session: Session) -> _StoreRequest:
    item = text_of(nodes[0]).upper()
    name = item.removesuffix(b".SILENT")
    sign = name[:1] if name[:1] in (b"+", b"-") else b""
    if name[len(sign) :] not in (b"FLAGS", b"X-GM-LABELS"):
        raise ParseError(f"unknown STORE item {name!r}")
    values = list_of(nodes[1]) if len(nodes) == 2 else nodes[1:]  # noqa: PLR2004
    return _StoreRequest(sign, name[len(sign) :], [name_of(v, utf8=session.utf8) for v in values], silent=name != item)


def _require_writable(session: Session) -> None:
    if session.selected.readonly:
        raise CommandRefused("NO [READ-ONLY] Folder is read-only. (Failure)")


async def _store_one(session: Session, entry: MailboxEntry, request: _StoreRequest, *, by_uid: bool) -> None:
    if request.name == b"FLAGS":
        _store_flags(session, entry.message, request.sign, frozenset(request.values))
    else:
        _store_labels(session, entry.message, request.sign, request.values)
    session.selected.forget_change(entry.uid)
    if request.silent:
        return
    if request.name == b"FLAGS":
        await session.connection.send(flags_update(entry, condstore=session.condstore, uid=by_uid))
    else:
        uid = b" UID %d" % entry.uid if by_uid else b""
        labels = fetch.format_labels(entry.message, session)
        await session.send(b"* %d FETCH (X-GM-LABELS %s%s)" % (entry.number, labels, uid))


def _store_flags(session: Session, message: Message, sign: bytes, flags: frozenset[str]) -> None:
    account = session.backend.account
    new_flags = message.flags | flags if sign == b"+" else message.flags - flags if sign == b"-" else flags
    account.set_flags(message.msgid, new_flags - {"\\Recent"})
    if "\\Deleted" in message.flags:  # Gmail expunges at once unless the user turned that off
        expunge_message(session, message)


def _store_labels(session: Session, message: Message, sign: bytes, labels: list[str]) -> None:
    account = session.backend.account
    # The label of the selected mailbox cannot be taken away by STORE: a no-op on Gmail.
    kept = {own_label(session.selected.mailbox)}
    if sign == b"+":
        account.change_labels(message.msgid, add=labels)
    elif sign == b"-":
        account.change_labels(message.msgid, remove=[label for label in labels if label not in kept])
    else:
        account.change_labels(message.msgid, add=labels, remove=message.labels - set(labels) - kept)


def expunge_message(session: Session, message: Message) -> None:
    """Expunge as Gmail's default setting does: a label is taken off, All Mail moves to Trash, Trash deletes."""
    account, mailbox = session.backend.account, session.selected.mailbox
    label = own_label(mailbox)
    if label is not None:
        account.change_labels(message.msgid, remove=[label])
        account.set_flags(message.msgid, message.flags - {"\\Deleted"})
    elif message.location is MessageLocation.ALL:
        account.set_flags(message.msgid, message.flags - {"\\Deleted"})
        account.move(message.msgid, MessageLocation.TRASH)
    else:
        account.delete(message.msgid)


async def expunge(session: Session, args: list[Node], *, by_uid: bool = False) -> str:
    r"""Run EXPUNGE or UID EXPUNGE on what is still marked \Deleted."""
    _require_writable(session)
    selection = session.selected
    entries = _entries(session, args, by_uid=True) if by_uid else list(selection.entries(selection.all_indexes()))
    for entry in entries:
        if "\\Deleted" in entry.message.flags:
            expunge_message(session, entry.message)
    return "OK Success"


async def close(session: Session, _args: list[Node]) -> str:
    """Run CLOSE: expunge silently unless read-only, then leave the mailbox."""
    if not session.selected.readonly:
        await expunge(session, [])
    session.select(None)
    return "OK Returned to authenticated state. (Success)"


async def copy(session: Session, args: list[Node], *, by_uid: bool = False, move: bool = False) -> str:
    """Run COPY or MOVE: on Gmail both change labels, the message stays one."""
    entries = _entries(session, args, by_uid=by_uid)
    if len(args) != 2:  # noqa: PLR2004
        raise ParseError("a set and a mailbox are needed")
    if move:
        _require_writable(session)
    target = _target(session, name_of(args[1], utf8=session.utf8))
    source = session.selected.mailbox
    pairs = [(entry.uid, _add_to_mailbox(session, entry.message, target)) for entry in entries]
    if not pairs:
        return "OK Success"
    sources, targets = (",".join(map(str, column)) for column in zip(*pairs, strict=True))
    code = f"COPYUID {target.uidvalidity} {sources} {targets}"
    if not move:
        return f"OK [{code}] (Success)"
    for entry in entries:
        _remove_from_mailbox(session, entry.message, source, target)
    await session.send(f"* OK [{code}]".encode())  # RFC 6851 section 4.3: before the EXPUNGEs
    return "OK (Success)"


async def move(session: Session, args: list[Node], *, by_uid: bool = False) -> str:
    """Run MOVE or UID MOVE."""
    return await copy(session, args, by_uid=by_uid, move=True)


def _target(session: Session, name: str) -> Mailbox:
    mailbox = session.backend.account.find_mailbox(name)
    if mailbox is None:
        raise CommandRefused(f"NO [TRYCREATE] No folder {printable_name(name)} (Failure)")
    return mailbox


def _add_to_mailbox(session: Session, message: Message, target: Mailbox) -> int:
    account = session.backend.account
    if target.key in folders.KEY_LOCATIONS:
        account.move(message.msgid, folders.KEY_LOCATIONS[target.key])
    else:
        account.change_labels(message.msgid, add=[target.key])
        account.move(message.msgid, MessageLocation.ALL)
    return target.uid_of(message.msgid) or 0


def _remove_from_mailbox(session: Session, message: Message, source: Mailbox, target: Mailbox) -> None:
    label = own_label(source)
    if label is not None and source is not target:
        session.backend.account.change_labels(message.msgid, remove=[label])


async def append(session: Session, args: list[Node]) -> str:
    """Run APPEND; a known Message-ID merges with the message that is there."""
    if len(args) < 2:  # noqa: PLR2004
        raise ParseError("APPEND needs a mailbox and a message")
    mailbox = _target(session, name_of(args[0], utf8=session.utf8))
    flags: list[str] = []
    internaldate = None
    for node in args[1:-1]:
        if isinstance(node, list):
            flags = [text_of(flag).decode("ascii", "replace") for flag in node]
        else:
            internaldate = _date_time(node)
    outcome = session.backend.account.deliver(text_of(args[-1]), [mailbox.key], flags, internaldate)
    session.backend.stats.deliveries += 1
    uid = mailbox.uid_of(outcome.message.msgid) or 0
    return f"OK [APPENDUID {mailbox.uidvalidity} {uid}] (Success)"


def _date_time(token: ImapToken) -> int:
    try:
        parsed = datetime.strptime(token.value.decode("ascii").strip(), "%d-%b-%Y %H:%M:%S %z")
    except ValueError as error:
        raise ParseError(str(error)) from error
    return int(parsed.timestamp() * 1000)
