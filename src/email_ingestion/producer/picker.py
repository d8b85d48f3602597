"""Picks from one opened mailbox what is to go into the stream; new mail and old mail are picked alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Protocol

from email_ingestion.events import Observe, Published, Quarantined, Skipped, TooLarge
from email_ingestion.mailbox import MessageSummary
from email_ingestion.mailbox.imap_mailbox import SelectedMailbox
from email_ingestion.producer.choice import Portion, Rules
from email_ingestion.producer.fetch import Fetch, Storing
from email_ingestion.records import Cursor, RawMessage
from email_ingestion.stream import Quarantine


class Accounted(Protocol):
    """What became of the mail of one opened mailbox so far. Every method may raise SinkUnavailable."""

    def uids(self, outlines: Sequence[MessageSummary]) -> Collection[int]:
        """The UIDs of those that are delivered, queued or dead letters already."""
        ...

    def identities(self, messages: Sequence[RawMessage]) -> Collection[str]:
        """The identities of those that are; for a server that does not tell identities without the bodies."""
        ...

    def begun(self) -> datetime | None:
        """The date of the first message that was delivered."""
        ...


class Picker:
    """Made anew for each connection."""

    def __init__(
        self,
        account: str,
        opened: SelectedMailbox,
        *,
        fetch: Fetch,
        quarantine: Quarantine,
        rules: Rules,
        several: bool,
        observe: Observe,
    ) -> None:
        """`several`: a message may be in another mailbox that is read too, where it was perhaps found first."""
        self._account = account
        self._opened = opened
        self._fetch = fetch
        self._quarantine = quarantine
        self._several = several
        self._observe = observe
        self.rules = rules

    def outlines(self, uids: Sequence[int]) -> list[MessageSummary]:
        """What the server tells of `uids`, ascending."""
        outlines = self._fetch.outlines(uids)
        self._set_aside()
        return outlines

    def wanted(self, outlines: Sequence[MessageSummary], cursor: Cursor, accounted: Accounted) -> set[int]:
        """The UIDs of those (ascending) that no rule leaves out and that are not accounted for."""
        old = {outline.uid for outline in outlines if outline.uid <= cursor.rescan}
        doubtful = [outline for outline in outlines if self._several or outline.uid in old]
        known = accounted.uids(doubtful) if doubtful else ()
        rules = self.rules.for_old_mail(accounted.begun) if old else self.rules
        reasons = {
            outline.uid: (rules if outline.uid in old else self.rules).reason_against(outline, known)
            for outline in outlines
        }
        for outline in outlines:
            if reasons[outline.uid] == "too_large":
                self._observe(TooLarge(self._account, self._opened.name, outline.uid, outline.size))
        for reason, count in Counter(reason for reason in reasons.values() if reason).items():
            self._observe(Skipped(self._account, reason, count))
        return {uid for uid, reason in reasons.items() if reason is None}

    def expect(self, portion: Portion) -> None:
        """Have the server get ready what is soon to be asked for."""
        self._fetch.expect(portion.wanted)

    def messages(
        self, portion: Portion, cursor: Cursor, accounted: Accounted, storing: Storing | None = None
    ) -> list[RawMessage]:
        """Those of a portion that are to be appended; what the server refuses is noted before a cursor passes it.

        `storing` as `Fetch.messages` has it.
        """
        messages = self._unknown(list(self._fetch.messages(portion.wanted, storing)), cursor, accounted)
        self._set_aside()
        return messages

    def published(self, messages: Sequence[RawMessage], added: int) -> None:
        """Tell that `messages` were appended, `added` of them for the first time."""
        if messages:
            ids = tuple(message.envelope.email_id for message in messages)
            size = sum(message.envelope.size for message in messages)
            self._observe(Published(self._account, self._opened.name, ids, added, size))

    def _set_aside(self) -> None:
        refused = self._fetch.take_refused()
        for uid, tries in self._quarantine.add(refused).items():
            self._observe(Quarantined(self._account, self._opened.name, uid, refused[uid], tries))

    def _unknown(self, messages: list[RawMessage], cursor: Cursor, accounted: Accounted) -> list[RawMessage]:
        """Without X-GM-MSGID only the bytes tell that a message was read before, under another UIDVALIDITY."""
        unnamed = [each for each in messages if each.envelope.gm_msgid is None]
        old = [each for each in unnamed if self._several or each.envelope.uid <= cursor.rescan]
        if not old:
            return messages
        known = accounted.identities(old)
        left = [message for message in messages if message.envelope.email_id not in known]
        if len(left) < len(messages):
            self._observe(Skipped(self._account, "known", len(messages) - len(left)))
        return left
