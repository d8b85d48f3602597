"""IDLE (RFC 2177): changes are pushed the moment they happen, until the client says DONE."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from gmail_sandbox.backend import EXPIRED

if TYPE_CHECKING:
    from gmail_sandbox.imap_syntax import Node
    from gmail_sandbox.session import Session

_GLUED_MAIL = (
    b"From: Glue <glue@example.net>\r\nTo: demo@example.com\r\nSubject: glued to the idling line\r\n"
    b"Message-ID: <glued-%s@example.net>\r\n\r\nThis one is announced in the same segment as `+ idling`.\r\n"
)


async def idle(session: Session, _args: list[Node]) -> str:
    """Run IDLE."""
    await session.connection.send(b"+ idling\r\n" + _first_update(session))
    faults = session.backend.faults
    if faults.consume("half_open", when="idle"):
        session.silence()
    if faults.consume("session_expiry", when="idle"):
        session.end(EXPIRED)
    line = await _until_done(session)
    return "OK IDLE terminated (Success)" if line.strip().upper() == b"DONE" else "BAD Expected DONE"


def _first_update(session: Session) -> bytes:
    """Return the first announcement, to go out in one segment with the continuation response."""
    fault = session.backend.faults.consume("glued_exists")
    if fault is None:
        return b""
    if fault.is_enabled("deliver") and not (session.selection and session.selection.has_pending):
        session.backend.account.deliver(_GLUED_MAIL % session.backend.new_id().encode())
    return session.pending_updates()


async def _until_done(session: Session) -> bytes:
    done = asyncio.ensure_future(session.next_line())
    try:
        while not done.done():
            await _push(session)
            await _wait_for_either(done, session.wake)
            session.raise_if_ended()
        return done.result()
    finally:
        done.cancel()


async def _push(session: Session) -> None:
    session.wake.clear()
    await session.send_updates()


async def _wait_for_either(done: asyncio.Future[bytes], wake: asyncio.Event) -> None:
    woken = asyncio.ensure_future(wake.wait())
    waiting: set[asyncio.Future[Any]] = {done, woken}
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        woken.cancel()
