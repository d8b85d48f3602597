"""The IMAP server: the table of commands, the states they are allowed in, and the life of a connection."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from gmail_sandbox import fetch, idle, imap_syntax, login, mailbox_commands, message_commands, search
from gmail_sandbox.connection import ClientConnection, ConnectionEnded, LineTooLong, LiteralRefused
from gmail_sandbox.faults import OVER_QUOTA
from gmail_sandbox.folders import BadLabel
from gmail_sandbox.imap_syntax import ImapToken, Node, ParseError, text_of
from gmail_sandbox.message import BadFlag
from gmail_sandbox.session import AFTER_LOGIN, BEFORE_LOGIN, CommandRefused, Session, SessionClosed, SessionRegistry

if TYPE_CHECKING:
    from gmail_sandbox.backend import Backend
    from gmail_sandbox.faults import ArmedFault

Run: TypeAlias = Callable[[Session, list[Node]], Awaitable[str]]

_TAG = re.compile(rb"[^\x00-\x20(){%*\"\\+\x7f-\xff]+")
_COULD_NOT_PARSE = "BAD Could not parse command"
_ANY, _NOT_AUTHENTICATED, _AUTHENTICATED, _SELECTED = "any", "before login", "after login", "selected"


async def _capability(session: Session, _args: list[Node]) -> str:
    await session.send(b"* CAPABILITY " + (AFTER_LOGIN if session.user else BEFORE_LOGIN))
    return "OK Success" if session.user else f"OK Thats all she wrote! {session.id}"


async def _id(session: Session, _args: list[Node]) -> str:
    facts = {
        "name": "GImap",
        "vendor": "Google, Inc.",
        "support-url": "https://support.google.com/mail",
        "version": "gmail.imap-server_sandbox",
        "remote-host": session.connection.peer,
        "connection-token": session.id,
    }
    pairs = " ".join(f'"{name}" "{value}"' for name, value in facts.items())
    await session.send(f"* ID ({pairs})".encode())
    return "OK Success"


async def _noop(_session: Session, _args: list[Node]) -> str:
    return "OK Success"


async def _logout(session: Session, _args: list[Node]) -> str:
    await session.send(b"* BYE LOGOUT Requested")
    session.command = "LOGOUT"
    return "OK 73 good day (Success)"


async def _enable(session: Session, args: list[Node]) -> str:
    if session.selection is not None:
        return "BAD ENABLE not allowed now."
    requested = [text_of(arg).upper() for arg in args]
    enabled = [name for name in (b"CONDSTORE", b"UTF8=ACCEPT") if name in requested]
    session.condstore = session.condstore or b"CONDSTORE" in enabled
    session.utf8 = session.utf8 or b"UTF8=ACCEPT" in enabled
    await session.send(b"* ENABLED" + b"".join(b" " + name for name in enabled))
    return "OK Success"


async def _compress(_session: Session, _args: list[Node]) -> str:
    return "NO COMPRESS is not spoken here. (Failure)"


async def _uid(session: Session, args: list[Node]) -> str:
    verbs = {
        b"FETCH": fetch.fetch,
        b"SEARCH": search.search,
        b"STORE": message_commands.store,
        b"COPY": message_commands.copy,
        b"MOVE": message_commands.move,
        b"EXPUNGE": message_commands.expunge,
    }
    verb = verbs.get(text_of(args[0]).upper()) if args else None
    if verb is None:
        raise ParseError("UID needs a command it can be put before")
    return await verb(session, args[1:], by_uid=True)


class _Command(NamedTuple):
    run: Run
    state: str


_COMMANDS: dict[str, _Command] = {
    "CAPABILITY": _Command(_capability, _ANY),
    "ID": _Command(_id, _ANY),
    "NOOP": _Command(_noop, _ANY),
    "LOGOUT": _Command(_logout, _ANY),
    "AUTHENTICATE": _Command(login.authenticate, _NOT_AUTHENTICATED),
    "LOGIN": _Command(login.login, _NOT_AUTHENTICATED),
    "ENABLE": _Command(_enable, _AUTHENTICATED),
    "COMPRESS": _Command(_compress, _AUTHENTICATED),
    "NAMESPACE": _Command(mailbox_commands.namespace, _AUTHENTICATED),
    "LIST": _Command(mailbox_commands.list_, _AUTHENTICATED),
    "LSUB": _Command(mailbox_commands.lsub, _AUTHENTICATED),
    "XLIST": _Command(mailbox_commands.xlist, _AUTHENTICATED),
    "SUBSCRIBE": _Command(_noop, _AUTHENTICATED),
    "UNSUBSCRIBE": _Command(_noop, _AUTHENTICATED),
    "STATUS": _Command(mailbox_commands.status, _AUTHENTICATED),
    "SELECT": _Command(mailbox_commands.select, _AUTHENTICATED),
    "EXAMINE": _Command(mailbox_commands.examine, _AUTHENTICATED),
    "CREATE": _Command(mailbox_commands.create, _AUTHENTICATED),
    "DELETE": _Command(mailbox_commands.delete, _AUTHENTICATED),
    "RENAME": _Command(mailbox_commands.rename, _AUTHENTICATED),
    "APPEND": _Command(message_commands.append, _AUTHENTICATED),
    "IDLE": _Command(idle.idle, _AUTHENTICATED),
    "CHECK": _Command(_noop, _SELECTED),
    "CLOSE": _Command(message_commands.close, _SELECTED),
    "UNSELECT": _Command(mailbox_commands.unselect, _SELECTED),
    "EXPUNGE": _Command(message_commands.expunge, _SELECTED),
    "SEARCH": _Command(search.search, _SELECTED),
    "FETCH": _Command(fetch.fetch, _SELECTED),
    "STORE": _Command(message_commands.store, _SELECTED),
    "COPY": _Command(message_commands.copy, _SELECTED),
    "MOVE": _Command(message_commands.move, _SELECTED),
    "UID": _Command(_uid, _SELECTED),
}
# During these no EXPUNGE may be announced. RFC 3501 would allow it for the UID forms; clients are kinder without.
_WITHOUT_EXPUNGE = ("FETCH", "SEARCH", "STORE", "UID FETCH", "UID SEARCH", "UID STORE")


async def serve(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, backend: Backend, registry: SessionRegistry
) -> None:
    """Serve one connection until it ends."""
    session = Session(ClientConnection(reader, writer, backend), backend, registry)
    registry.add(session)
    backend.stats.count_connection()
    try:
        await _serve_session(session)
    except (ConnectionEnded, ConnectionError):
        pass
    except SessionClosed as over:
        session.connection.close_with_bye(str(over))
    except LineTooLong:
        session.connection.close_with_bye("Line too long")
    finally:
        session.close()
        registry.remove(session)
        backend.stats.connections_now -= 1
        session.connection.close()
        await session.connection.wait_closed()


async def _serve_session(session: Session) -> None:
    if session.backend.faults.consume("greeting_bye"):
        raise SessionClosed("Temporary System Problem, try again later.")
    await session.send(f"* OK Gimap ready for requests from {session.connection.peer} {session.id}".encode())
    while session.command != "LOGOUT":
        line = await session.next_line()
        if line:
            await _execute_line(session, line)


async def _execute_line(session: Session, line: bytes) -> None:
    try:
        pieces = await session.connection.read_literals(line)
    except LiteralRefused as refused:
        await session.send(line.split(b" ")[0] + b" " + str(refused).encode())
        return
    tag, _, rest = pieces[0].partition(b" ")
    if not _TAG.fullmatch(tag):
        await session.send(f"* BAD invalid tag {session.id}".encode())
        return
    session.tag = tag
    answer = await _execute(session, [rest, *pieces[1:]])
    await _complete(session, answer)


async def _execute(session: Session, pieces: list[bytes]) -> str:
    try:
        nodes = imap_syntax.tokenise(pieces)
        if not nodes or not isinstance(nodes[0], ImapToken):
            return _COULD_NOT_PARSE
        session.command = nodes[0].upper().decode("latin-1")
        return await _run(session, nodes[1:])
    except CommandRefused as refused:
        return str(refused)
    except BadLabel:
        return "NO [CANNOT] Invalid folder name. (Failure)"
    except (ParseError, BadFlag):
        return _COULD_NOT_PARSE


async def _run(session: Session, args: list[Node]) -> str:
    command = _COMMANDS.get(session.command)
    if command is None:
        return f"BAD Unknown command {session.id}"
    session.command = _full_name(session.command, args)
    session.backend.stats.commands[session.command] += 1
    if not _allowed(session, command.state):
        return "BAD Command not allowed in this state."
    await _apply_faults(session)
    return await command.run(session, args)


def _full_name(name: str, args: list[Node]) -> str:
    return f"UID {text_of(args[0]).decode('latin-1').upper()}" if name == "UID" and args else name


def _allowed(session: Session, state: str) -> bool:
    if state == _NOT_AUTHENTICATED:
        return not session.user
    if state == _AUTHENTICATED:
        return bool(session.user)
    return state == _ANY or session.selection is not None


async def _apply_faults(session: Session) -> None:
    """Apply the faults that can meet any command of an authenticated session."""
    faults = session.backend.faults
    scripted = faults.get("answer")
    if scripted is not None and _targets(scripted, session):
        faults.consume("answer")
        raise CommandRefused(scripted.get_text("text"))
    if not session.user or session.command == "LOGOUT":
        return
    if faults.consume("half_open", when="command"):
        session.silence()
        await session.next_line()
    if faults.consume("bad_system_error_bye"):
        raise SessionClosed("System Error")
    if session.backend.quota.is_exhausted():
        raise CommandRefused(f"NO {OVER_QUOTA} (Failure)")
    unavailable = faults.get("unavailable")
    if unavailable is not None and _targets(unavailable, session):
        faults.consume("unavailable")
        raise CommandRefused("NO [UNAVAILABLE] Temporary System Error (Failure)")


def _targets(fault: ArmedFault, session: Session) -> bool:
    """Tell whether a fault applies to this command; without a command's name it applies to any after login."""
    named = fault.get_text("command").upper()
    return named == session.command.split()[-1] if named else bool(session.user)


async def _complete(session: Session, answer: str) -> None:
    await session.send_updates(expunges=session.command not in _WITHOUT_EXPUNGE)
    throttled = session.backend.faults.consume("throttled") if answer.startswith("OK") else None
    if throttled is not None:
        await asyncio.sleep(throttled.get_number("delay_ms") / 1000)
        answer += " [THROTTLED]"
    await session.send(session.tag + b" " + answer.encode())
    if session.command != "LOGOUT":
        session.raise_if_ended()
