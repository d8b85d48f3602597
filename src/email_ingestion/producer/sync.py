r"""One pass over one mailbox: everything above the cursor goes into the stream, oldest first.

UIDs above the cursor ─▶ outlines (≤ 500) ─▶ choose ─▶ portions (≤ 4 MB) ─▶ bodies ─▶ append + cursor
                                               │
                 after a lost cursor: ask what is delivered, queued or dead already
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import datetime
from typing import Protocol

from email_ingestion.email import Cursor, Message
from email_ingestion.events import MailboxChanged, Observe, Published, Quarantined, Skipped, Synced, Waiting
from email_ingestion.mailbox import ImapMailbox, Outline
from email_ingestion.mailbox.imap import FETCH_MOST, LIST_WINDOW, Opened
from email_ingestion.producer.choice import Portion, Rules, portions
from email_ingestion.producer.fetch import PORTION_BYTES, Fetch
from email_ingestion.stream import Intake, Quarantine


class Accounted(Protocol):
    """What became of the mail of one opened mailbox so far. Every method may raise SinkUnavailable."""

    def uids(self, outlines: Sequence[Outline]) -> Collection[int]:
        """The UIDs of those that are delivered, queued or dead letters already."""
        ...

    def identities(self, messages: Sequence[Message]) -> Collection[str]:
        """The identities of those that are; for a server that does not tell identities without the bodies."""
        ...

    def begun(self) -> datetime | None:
        """The date of the first message that was delivered."""
        ...


class Sync:
    """Keeps one opened mailbox and the stream equal. Made anew for each connection."""

    def __init__(
        self,
        account: str,
        connection: ImapMailbox,
        opened: Opened,
        *,
        intake: Intake,
        fetch: Fetch,
        quarantine: Quarantine,
        rules: Rules,
        look: Callable[[], Accounted],
        wait_for_room: Callable[[], bool],
        observe: Observe,
    ) -> None:
        self._account = account
        self._connection = connection
        self._opened = opened
        self._intake = intake
        self._fetch = fetch
        self._quarantine = quarantine
        self._rules = rules
        self._look = look
        self._accounted = look()
        self._wait_for_room = wait_for_room
        self._observe = observe
        self._first = True

    def run(self) -> bool:
        """Bring everything above the cursor into the stream; False when it was told to stop before the end.

        Raises IMAPConnectionError, RedisConnectionError, CircuitBreakerError, StaleCursor, SinkUnavailable; whatever
        was appended before stays, and the next pass goes on behind it.
        """
        listed_at = time.monotonic()
        self._accounted = self._look()  # anew: Redis may have been flushed or restored since the last pass
        cursor = self._cursor()
        for uids in self._listed(cursor):
            for start in range(0, len(uids), FETCH_MOST):
                chunk = uids[start : start + FETCH_MOST]
                cursor, going = self._take(cursor, chunk)
                if not going:
                    return False
                self._report(cursor, len(uids) - start - len(chunk))
        self._report(cursor, 0, time.monotonic() - listed_at)
        return True

    def _cursor(self) -> Cursor:
        opened = self._opened
        found = self._intake.cursor(self._account, opened.name)
        if found and found.uidvalidity == opened.uidvalidity:
            return found
        newest = max(0, opened.uidnext - 1)
        if found:
            self._observe(MailboxChanged(self._account, opened.name, found.uidvalidity, opened.uidvalidity))
        # With IMAP_START=now, no cursor is the first run or the loss of Redis; the ledger knows which.
        first_run = not found and self._rules.begin_now and self._accounted.begun() is None
        begin = newest if first_run else 0
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
        outlines = self._fetch.outlines(uids)
        self._set_aside()
        wanted = self._wanted(outlines, cursor)
        self._tell_waiting(outlines, wanted, cursor)
        for portion in portions(outlines, wanted, uids[-1], PORTION_BYTES):
            if portion.wanted and not self._wait_for_room():
                return cursor, False
            cursor = self._append(cursor, portion)
        return cursor, True

    def _wanted(self, outlines: Sequence[Outline], cursor: Cursor) -> set[int]:
        old = [outline for outline in outlines if outline.uid <= cursor.rescan]
        reasons = {outline.uid: self._rules.reason_against(outline, ()) for outline in outlines[len(old) :]}
        if old:
            rules, known = self._rules.for_old_mail(self._accounted.begun), self._accounted.uids(old)
            reasons |= {outline.uid: rules.reason_against(outline, known) for outline in old}
        for reason, count in Counter(reason for reason in reasons.values() if reason).items():
            self._observe(Skipped(self._account, reason, count))
        return {uid for uid, reason in reasons.items() if reason is None}

    def _tell_waiting(self, outlines: Sequence[Outline], wanted: set[int], cursor: Cursor) -> None:
        """Since when new mail waits; what the first run finds has waited for nobody."""
        arrived = [each.internaldate for each in outlines if each.uid in wanted and each.uid > cursor.rescan]
        if arrived:
            self._observe(Waiting(self._account, min(arrived).timestamp()))

    def _append(self, cursor: Cursor, portion: Portion) -> Cursor:
        messages = self._unknown(list(self._fetch.messages(portion.wanted)), cursor)
        self._set_aside()
        added, moved = self._intake.append(self._account, self._opened.name, cursor, portion.upto, messages)
        if messages:
            ids = tuple(message.envelope.email_id for message in messages)
            size = sum(message.envelope.size for message in messages)
            self._observe(Published(self._account, self._opened.name, ids, added, size))
        return moved

    def _set_aside(self) -> None:
        """Note what the server refuses to send before the cursor passes it."""
        refused = self._fetch.take_refused()
        for uid, tries in self._quarantine.hold(refused).items():
            self._observe(Quarantined(self._account, self._opened.name, uid, refused[uid], tries))

    def _unknown(self, messages: list[Message], cursor: Cursor) -> list[Message]:
        """Without X-GM-MSGID only the bytes tell that a message was read before, under another UIDVALIDITY."""
        old = [each for each in messages if each.envelope.uid <= cursor.rescan and each.envelope.gm_msgid is None]
        if not old:
            return messages
        known = self._accounted.identities(old)
        left = [message for message in messages if message.envelope.email_id not in known]
        if len(left) < len(messages):
            self._observe(Skipped(self._account, "known", len(messages) - len(left)))
        return left

    def _report(self, cursor: Cursor, backlog: int, listed_ago: float | None = None) -> None:
        opened = self._opened
        self._observe(Synced(self._account, opened.name, cursor.uidvalidity, cursor.uid, backlog, listed_ago))
