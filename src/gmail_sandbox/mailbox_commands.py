"""Finding and opening mailboxes: LIST, LSUB, XLIST, STATUS, NAMESPACE, SELECT, EXAMINE, CLOSE, UNSELECT."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gmail_sandbox import folders, imap_syntax
from gmail_sandbox.folders import INBOX
from gmail_sandbox.imap_syntax import ImapToken, Node, ParseError, list_of, name_of, text_of
from gmail_sandbox.mailbox import Selection
from gmail_sandbox.session import CommandRefused, Session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gmail_sandbox.mailbox import Mailbox

_FLAGS = b"\\Answered \\Flagged \\Draft \\Deleted \\Seen $NotPhishing $Phishing"
_STATUS_ITEMS = (b"MESSAGES", b"RECENT", b"UIDNEXT", b"UIDVALIDITY", b"UNSEEN", b"HIGHESTMODSEQ", b"SIZE")


async def namespace(session: Session, _args: list[Node]) -> str:
    """Run NAMESPACE."""
    await session.send(b'* NAMESPACE (("" "/")) NIL NIL')
    return "OK Success"


@dataclass(frozen=True)
class _ListRequest:
    """What a LIST asks for."""

    verb: bytes
    patterns: list[str]
    special_only: bool = False
    status_items: tuple[bytes, ...] = ()


async def list_(session: Session, args: list[Node]) -> str:
    """Run LIST, with the selection and return options of RFC 5258 and RFC 5819."""
    selectors: list[bytes] = []
    if args and isinstance(args[0], list):
        selectors = [text_of(node).upper() for node in args[0]]
        args = args[1:]
    patterns = _patterns(args, session)
    return await _answer_list(
        session, _ListRequest(b"LIST", patterns, b"SPECIAL-USE" in selectors, _status_return(args[2:]))
    )


async def lsub(session: Session, args: list[Node]) -> str:
    """Run LSUB: every mailbox shown in IMAP counts as subscribed."""
    return await _answer_list(session, _ListRequest(b"LSUB", _patterns(args, session)))


async def xlist(session: Session, args: list[Node]) -> str:
    """Run XLIST, Gmail's older LIST with its own attribute names."""
    return await _answer_list(session, _ListRequest(b"XLIST", _patterns(args, session)))


def _patterns(args: list[Node], session: Session) -> list[str]:
    """Return the patterns with the reference put before each; one empty pattern stays empty."""
    if len(args) < 2:  # noqa: PLR2004
        raise ParseError("LIST needs a reference and a pattern")
    reference = name_of(args[0], utf8=session.utf8)
    patterns = [name_of(node, utf8=session.utf8) for node in list_of(args[1])]
    return patterns if patterns == [""] else [reference + pattern for pattern in patterns]


def _status_return(args: list[Node]) -> tuple[bytes, ...]:
    """Return the items of `RETURN (… STATUS (items))`, if there are any."""
    if len(args) < 2 or text_of(args[0]).upper() != b"RETURN":  # noqa: PLR2004
        return ()
    returned = list_of(args[1])
    for at, node in enumerate(returned):
        if isinstance(node, ImapToken) and node.upper() == b"STATUS" and at + 1 < len(returned):
            return tuple(text_of(item).upper() for item in list_of(returned[at + 1]))
    return ()


async def _answer_list(session: Session, listing: _ListRequest) -> str:
    if listing.patterns == [""]:  # RFC 3501 section 6.3.8: asks for the delimiter only
        await session.send(b'* %s (\\Noselect) "/" "/"' % listing.verb)
        return "OK Success"
    tree = _tree(session)
    matchers = [_matcher(pattern) for pattern in listing.patterns]
    for name, key in tree.items():
        if not any(matcher.fullmatch(name) for matcher in matchers):
            continue
        if listing.special_only and key not in folders.SPECIAL_USE:
            continue
        await session.send(_list_line(listing.verb, name, key, tree, utf8=session.utf8))
        if listing.status_items and key is not None:
            mailbox = session.backend.account.mailboxes[key]
            await session.send(_status_line(session, name, mailbox, listing.status_items))
    return "OK Success"


def _tree(session: Session) -> dict[str, str | None]:
    """Return every name to list with its key; None for a parent that is no mailbox itself."""
    account = session.backend.account
    tree: dict[str, str | None] = {}
    for key, name in account.names().items():
        if key == folders.ALL and session.backend.all_hidden:
            continue
        for at, char in enumerate(name):
            if char == "/" and at:
                tree.setdefault(name[:at], None)
        tree[name] = key
    return tree


def _matcher(pattern: str) -> re.Pattern[str]:
    parts = (".*" if char == "*" else "[^/]*" if char == "%" else re.escape(char) for char in pattern)
    return re.compile("".join(parts), re.IGNORECASE if pattern.upper() == "INBOX" else 0)


def _list_line(verb: bytes, name: str, key: str | None, tree: dict[str, str | None], *, utf8: bool) -> bytes:
    has_children = any(other.startswith(name + "/") for other in tree)
    attributes = ["\\HasChildren" if has_children else "\\HasNoChildren"]
    if key is None:
        attributes.append("\\Noselect")
    use = (folders.XLIST_USE if verb == b"XLIST" else folders.SPECIAL_USE).get(key or "")
    if use:
        attributes.append(use)
    joined = " ".join(sorted(attributes)).encode()
    return b'* %s (%s) "/" %s' % (verb, joined, imap_syntax.format_mailbox(name, utf8=utf8))


async def status(session: Session, args: list[Node]) -> str:
    """Run STATUS."""
    if len(args) != 2:  # noqa: PLR2004
        raise ParseError("STATUS needs a mailbox and a list of items")
    name = name_of(args[0], utf8=session.utf8)
    items = [text_of(item).upper() for item in list_of(args[1])]
    await session.send(_status_line(session, name, find_mailbox(session, name), items))
    return "OK Success"


def _status_line(session: Session, name: str, mailbox: Mailbox, items: Sequence[bytes]) -> bytes:
    if unknown := [item for item in items if item not in _STATUS_ITEMS]:
        raise ParseError(f"unknown STATUS item {unknown[0]!r}")
    account, cap = session.backend.account, session.backend.folder_cap
    msgids = mailbox.msgids[-cap:] if cap else mailbox.msgids
    values = {b"MESSAGES": len(msgids), b"RECENT": 0, b"UIDNEXT": mailbox.uidnext, b"UIDVALIDITY": mailbox.uidvalidity}
    values[b"HIGHESTMODSEQ"] = account.modseq
    if b"UNSEEN" in items:
        values[b"UNSEEN"] = sum("\\Seen" not in account.messages[msgid].flags for msgid in msgids)
    if b"SIZE" in items:
        values[b"SIZE"] = sum(account.messages[msgid].size for msgid in msgids)
    pairs = b" ".join(b"%s %d" % (item, values[item]) for item in items)
    return b"* STATUS %s (%s)" % (imap_syntax.format_mailbox(name, utf8=session.utf8), pairs)


def find_mailbox(session: Session, name: str) -> Mailbox:
    """Return the mailbox of that name or end the command as Gmail does."""
    account = session.backend.account
    mailbox = account.find_mailbox(name)
    if mailbox is None or (mailbox.key == folders.ALL and session.backend.all_hidden):
        raise CommandRefused(f"NO [NONEXISTENT] Unknown Mailbox: {printable_name(name)} (Failure)")
    return mailbox


def printable_name(name: str) -> str:
    """Return a mailbox name in a form that fits into an answer's text."""
    return imap_syntax.format_mailbox(name)[1:-1].decode()


async def select(session: Session, args: list[Node]) -> str:
    """Run SELECT."""
    return await _open(session, args, readonly=False)


async def examine(session: Session, args: list[Node]) -> str:
    """Run EXAMINE."""
    return await _open(session, args, readonly=True)


async def _open(session: Session, args: list[Node], *, readonly: bool) -> str:
    if not args:
        raise ParseError("a mailbox is needed")
    name = name_of(args[0], utf8=session.utf8)
    await _apply_stuck_select(session)
    session.select(None)
    if session.backend.faults.consume("nonexistent_mailbox"):
        return _unknown_mailbox(name)
    try:
        mailbox = find_mailbox(session, name)
    except CommandRefused:
        # A failed SELECT leaves no mailbox selected (RFC 3501 section 6.3.1).
        return _unknown_mailbox(name)
    if _enables_condstore(args[1:]):
        session.condstore = True
    shown_name = session.backend.account.names()[mailbox.key]
    selection = Selection(
        mailbox,
        shown_name,
        session.backend.account.messages,
        limit=session.backend.folder_cap,
        on_change=session.notify_change,
        on_renumbered=session.invalidate_selection,
    )
    selection.readonly = readonly
    session.select(selection)
    await _send_facts(session, selection)
    access = "READ-ONLY" if readonly else "READ-WRITE"
    return f"OK [{access}] {printable_name(shown_name)} selected. (Success)"


async def _apply_stuck_select(session: Session) -> None:
    fault = session.backend.faults.consume("stuck_select")
    if fault is None:
        return
    if fault.options["seconds"] is None:
        session.silence()
        await session.next_line()
    await asyncio.sleep(fault.get_number("seconds"))
    raise CommandRefused("NO System Error (Failure)")


def _unknown_mailbox(name: str) -> str:
    return f"NO [NONEXISTENT] Unknown Mailbox: {printable_name(name)} (now in authenticated state) (Failure)"


def _enables_condstore(args: list[Node]) -> bool:
    return any(isinstance(node, ImapToken) and node.upper() == b"CONDSTORE" for arg in args for node in list_of(arg))


async def _send_facts(session: Session, selection: Selection) -> None:
    mailbox = selection.mailbox
    await session.send(b"* FLAGS (%s)" % _FLAGS)
    if selection.readonly:
        await session.send(b"* OK [PERMANENTFLAGS ()] Flags permitted.")
    else:
        await session.send(b"* OK [PERMANENTFLAGS (%s \\*)] Flags permitted." % _FLAGS)
    await session.send(b"* OK [UIDVALIDITY %d] UIDs valid." % mailbox.uidvalidity)
    await session.send(b"* %d EXISTS" % len(selection.uids))
    await session.send(b"* 0 RECENT")
    await session.send(b"* OK [UIDNEXT %d] Predicted next UID." % mailbox.uidnext)
    await session.send(b"* OK [HIGHESTMODSEQ %d]" % session.backend.account.modseq)


async def unselect(session: Session, _args: list[Node]) -> str:
    """Run UNSELECT."""
    session.select(None)
    return "OK Returned to authenticated state. (Success)"


def own_label(mailbox: Mailbox) -> str | None:
    """Return the label a mailbox stands for, which Gmail leaves out of X-GM-LABELS there."""
    return None if mailbox.key in folders.KEY_LOCATIONS else mailbox.key


def is_system(key: str) -> bool:
    """Tell whether a mailbox is one the user cannot rename or delete."""
    return key == INBOX or key in folders.SPECIAL_USE


_UNKNOWN_FOLDER = "NO [NONEXISTENT] Unknown folder. (Failure)"


async def create(session: Session, args: list[Node]) -> str:
    """Run CREATE."""
    name = _only_name(session, args)
    if session.backend.account.find_mailbox(name) is not None:
        return "NO [ALREADYEXISTS] Duplicate folder name. (Failure)"
    session.backend.account.create_label(name.rstrip("/"))
    return "OK Success"


async def delete(session: Session, args: list[Node]) -> str:
    """Run DELETE: the label goes, the messages stay."""
    mailbox = session.backend.account.find_mailbox(_only_name(session, args))
    if mailbox is None:
        return _UNKNOWN_FOLDER
    if is_system(mailbox.key):
        return "NO [CANNOT] Invalid folder. (Failure)"
    session.backend.account.delete_label(mailbox.key)
    return "OK Success"


async def rename(session: Session, args: list[Node]) -> str:
    """Run RENAME."""
    if len(args) != 2:  # noqa: PLR2004
        raise ParseError("RENAME needs two names")
    mailbox = find_mailbox(session, name_of(args[0], utf8=session.utf8))
    if is_system(mailbox.key):
        return "NO [CANNOT] Invalid folder. (Failure)"
    session.backend.account.rename_label(mailbox.key, name_of(args[1], utf8=session.utf8))
    return "OK Success"


def _only_name(session: Session, args: list[Node]) -> str:
    if len(args) != 1:
        raise ParseError("one mailbox name is needed")
    return name_of(args[0], utf8=session.utf8)
