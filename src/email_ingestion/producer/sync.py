r"""One pass over one mailbox: everything above the cursor goes into the stream, oldest first.

UIDs above the cursor ─▶ outlines (≤ 500) ─▶ choose ─▶ portions (≤ 4 MB) ─▶ bodies ─▶ append + cursor
                                               │
                 after a lost cursor: ask the ledger what it already has
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from email_ingestion.email import Cursor, Envelope, Message
from email_ingestion.errors import IMAPConnectionError
from email_ingestion.events import Downloaded, MailboxChanged, Observe, Published, Skipped, Synced
from email_ingestion.mailbox import ImapMailbox, Outline
from email_ingestion.mailbox.imap import FETCH_MOST, LIST_WINDOW, Opened
from email_ingestion.producer.choice import Portion, Rules, portions
from email_ingestion.stream import Intake

PORTION_BYTES = 4 * 1024 * 1024


class Blobs(Protocol):
    """Where large messages are laid before the stream names them."""

    def put(self, data: bytes) -> str:
        """Store; returns the reference."""
        ...


# Which of these messages the ledger already has; returns their UIDs.
Known = Callable[[str, Opened, Sequence[Outline]], set[int]]


class Sync:
    """Keeps one opened mailbox and the stream equal. Made anew for each connection."""

    def __init__(
        self,
        account: str,
        connection: ImapMailbox,
        opened: Opened,
        *,
        intake: Intake,
        blobs: Blobs,
        blob_threshold: int,
        rules: Rules,
        begin_now: bool,
        known: Known,
        wait_for_room: Callable[[], bool],
        observe: Observe,
    ) -> None:
        self._account = account
        self._connection = connection
        self._opened = opened
        self._intake = intake
        self._blobs = blobs
        self._blob_threshold = blob_threshold
        self._rules = rules
        self._begin_now = begin_now
        self._known = known
        self._wait_for_room = wait_for_room
        self._observe = observe
        self._first = True

    def run(self) -> bool:
        """Bring everything above the cursor into the stream; False when it was told to stop before the end.

        Raises IMAPConnectionError, RedisConnectionError, CircuitBreakerError, StaleCursor, SinkUnavailable; whatever
        was appended before stays, and the next pass goes on behind it.
        """
        cursor = self._cursor()
        for uids in self._listed(cursor):
            for start in range(0, len(uids), FETCH_MOST):
                chunk = uids[start : start + FETCH_MOST]
                cursor, going = self._take(cursor, chunk)
                if not going:
                    return False
                self._report(cursor, len(uids) - start - len(chunk))
        self._report(cursor, 0)
        return True

    def _cursor(self) -> Cursor:
        opened = self._opened
        found = self._intake.cursor(self._account, opened.name)
        if found and found.uidvalidity == opened.uidvalidity:
            return found
        newest = max(0, opened.uidnext - 1)
        if found:
            self._observe(MailboxChanged(self._account, opened.name, found.uidvalidity, opened.uidvalidity))
        begin = newest if self._begin_now and not found else 0
        return self._intake.restart_cursor(self._account, opened.name, Cursor(opened.uidvalidity, begin, newest))

    def _listed(self, cursor: Cursor) -> Iterator[list[int]]:
        """UIDs above the cursor; in windows up to what the mailbox held when it was opened, then all the rest."""
        low = cursor.uid + 1
        while self._first and low + LIST_WINDOW < self._opened.uidnext:
            yield self._connection.uids(low, low + LIST_WINDOW - 1)
            low += LIST_WINDOW
        self._first = False
        yield self._connection.uids_from(low)

    def _take(self, cursor: Cursor, uids: list[int]) -> tuple[Cursor, bool]:
        """Fetch and append one stretch of UIDs; also says whether to go on."""
        outlines = self._connection.outlines(uids)
        wanted = self._wanted(outlines, cursor)
        for portion in portions(outlines, wanted, uids[-1], PORTION_BYTES):
            if portion.wanted and not self._wait_for_room():
                return cursor, False
            cursor = self._append(cursor, portion)
        return cursor, True

    def _wanted(self, outlines: Sequence[Outline], cursor: Cursor) -> set[int]:
        doubtful = [outline for outline in outlines if outline.uid <= cursor.rescan]
        known = self._known(self._account, self._opened, doubtful) if doubtful else set()
        reasons = {outline.uid: self._rules.reason_against(outline, known) for outline in outlines}
        for reason, count in Counter(reason for reason in reasons.values() if reason).items():
            self._observe(Skipped(self._account, reason, count))
        return {uid for uid, reason in reasons.items() if reason is None}

    def _append(self, cursor: Cursor, portion: Portion) -> Cursor:
        messages = list(self._messages(portion.wanted))
        added, moved = self._intake.append(self._account, self._opened.name, cursor, portion.upto, messages)
        if messages:
            ids = tuple(message.envelope.email_id for message in messages)
            size = sum(message.envelope.size for message in messages)
            self._observe(Published(self._account, self._opened.name, ids, added, size))
        return moved

    def _messages(self, outlines: Sequence[Outline]) -> Iterator[Message]:
        bodies = self._connection.bodies([outline.uid for outline in outlines]) if outlines else {}
        missing = [outline.uid for outline in outlines if outline.uid not in bodies]
        if missing:
            bodies |= self._again(missing)
        for outline in outlines:
            raw = bodies.pop(outline.uid, None)
            if raw is not None:
                self._observe(Downloaded(self._account, len(raw)))
                yield self._message(outline, raw)

    def _again(self, missing: Sequence[int]) -> dict[int, bytes]:
        """Bodies the server left out: fetched singly while they are listed, for a cursor must not pass over mail."""
        found: dict[int, bytes] = {}
        for uid in missing:
            if not self._connection.uids(uid, uid):
                self._observe(Skipped(self._account, "vanished", 1))
                continue
            found |= self._connection.bodies([uid])
            if uid not in found:
                raise IMAPConnectionError(f"the IMAP server lists UID {uid} but does not send it")
        return found

    def _message(self, outline: Outline, raw: bytes) -> Message:
        envelope = Envelope(
            account=self._account,
            mailbox=self._opened.name,
            uidvalidity=self._opened.uidvalidity,
            uid=outline.uid,
            gm_msgid=outline.gm_msgid,
            gm_thrid=outline.gm_thrid,
            labels=outline.labels,
            flags=outline.flags,
            internaldate=outline.internaldate,
            size=len(raw),
            sha256=hashlib.sha256(raw).hexdigest(),
        )
        if len(raw) > self._blob_threshold:
            return Message(envelope, None, self._blobs.put(raw))
        return Message(envelope, raw)

    def _report(self, cursor: Cursor, backlog: int) -> None:
        self._observe(Synced(self._account, self._opened.name, cursor.uidvalidity, cursor.uid, backlog))
