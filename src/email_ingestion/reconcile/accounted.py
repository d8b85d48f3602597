"""What became of the mail of one opened mailbox: asks the stream, the dead letters and the ledger, in that order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from email_ingestion.ledger.records import Place
from email_ingestion.mailbox import MessageSummary
from email_ingestion.mailbox.imap_mailbox import SelectedMailbox
from email_ingestion.reconcile.underway import Underway, Where
from email_ingestion.records import RawMessage, email_id

if TYPE_CHECKING:
    from email_ingestion.ledger.store import Ledger


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the ledger has of a range of UIDs of one mailbox."""

    first: set[int]  # delivered from here
    again: dict[int, Place]  # delivered from elsewhere, and found here too


@dataclass(slots=True)
class Evidence:
    """Where messages are: those of the ledger with the place they were first delivered from."""

    delivered: dict[int, Place] = field(default_factory=dict)
    underway: dict[int, Where] = field(default_factory=dict)
    purged: set[int] = field(default_factory=set)  # an operator gave them up

    @property
    def uids(self) -> set[int]:
        """All that are accounted for."""
        return self.delivered.keys() | self.underway.keys() | self.purged


class Accounted:
    """Knows one account's opened mailbox. Methods raise SinkUnavailable and what `RedisLink.call` raises.

    What the ledger recognizes by its identity at a new place it is told, so that the next time the place is enough.
    """

    def __init__(self, account: str, opened: SelectedMailbox, ledger: Callable[[], Ledger], underway: Underway) -> None:
        self._account = account
        self._opened = opened
        self._ledger = ledger
        self._underway = underway
        self._had_mail: bool | None = None  # the ledger, of the account, when that was looked at

    def look(self) -> str:
        """See what came into the stream; returns the id of its last entry that was looked at."""
        self._underway.look()
        self._had_mail = self._had_mail or None
        return self._underway.last

    def begun(self) -> datetime | None:
        """The date of the first message delivered from the mailbox."""
        return self._ledger().begun(self._account, self._opened.name)

    def recorded(self, low: int, high: int) -> Recorded:
        """What the ledger has of the UIDs from `low` to `high`."""
        self._underway.look_once()
        here = (self._account, self._opened.name, self._opened.uidvalidity, low, high)
        ledger = self._ledger()
        return Recorded(ledger.known_uids(*here), ledger.found_again(*here))

    def uids(self, outlines: Sequence[MessageSummary]) -> set[int]:
        """The UIDs of those outlines (ascending) that are delivered, queued, dead or purged."""
        recorded = self.recorded(outlines[0].uid, outlines[-1].uid)
        known = {outline.uid for outline in outlines if outline.uid in recorded.first or outline.uid in recorded.again}
        return known | self.evidence([outline for outline in outlines if outline.uid not in known]).uids

    def evidence(self, outlines: Sequence[MessageSummary]) -> Evidence:
        """Where the messages of `outlines` are, of which the ledger does not know the place."""
        self._underway.look_once()
        evidence = Evidence()
        for outline in outlines:
            where = (
                self._underway.by_place(self._at(outline.uid))
                if outline.gm_msgid is None
                else self._underway.by_gm_msgid(outline.gm_msgid)
            )
            if where:
                evidence.underway[outline.uid] = where
        told = {each.uid: email_id(self._account, each.gm_msgid, "") for each in outlines if each.gm_msgid is not None}
        return self._recorded_of(told, evidence)

    def evidence_of(self, messages: Sequence[RawMessage]) -> Evidence:
        """Where messages are, by what their bytes tell."""
        return self._recorded_of(_named(messages), self._queued(messages))

    def identities(self, messages: Sequence[RawMessage]) -> set[str]:
        """The identities of those messages that are delivered, queued, dead or purged.

        On a first run the ledger is not asked for each: it had nothing at the last look. What it got since came through
        the stream, as these will; should one of them be the same message once more, the worker sees that.
        """
        evidence = self._queued(messages)
        if self._had_mail is None:
            self._had_mail = self._ledger().has_mail(self._account)
        known = (self._recorded_of(_named(messages), evidence) if self._had_mail else evidence).uids
        return {each.envelope.email_id for each in messages if each.envelope.uid in known}

    def _queued(self, messages: Sequence[RawMessage]) -> Evidence:
        """What Redis tells, which is asked before the ledger."""
        self._underway.look_once()
        evidence = Evidence()
        for message in messages:
            envelope = message.envelope
            where = (
                self._underway.by_digest(envelope.sha256)
                if envelope.gm_msgid is None
                else self._underway.by_gm_msgid(envelope.gm_msgid)
            )
            if where:
                evidence.underway[envelope.uid] = where
        return evidence

    def _recorded_of(self, identities: dict[int, str], evidence: Evidence) -> Evidence:
        """Complete `evidence` with what the ledger says, which is asked last."""
        evidence.delivered = self._delivered(identities)
        purged = self._ledger().purged(identities.values())
        evidence.purged = {uid for uid, identity in identities.items() if identity in purged}
        return evidence

    def _delivered(self, identities: dict[int, str]) -> dict[int, Place]:
        ledger = self._ledger()
        places = ledger.places(identities.values())
        found = {uid: identity for uid, identity in identities.items() if identity in places}
        here = {self._at(uid): identity for uid, identity in found.items()}
        ledger.note_places(self._account, {at: identity for at, identity in here.items() if places[identity] != at})
        return {uid: places[identity] for uid, identity in found.items()}

    def _at(self, uid: int) -> Place:
        return Place(self._opened.name, self._opened.uidvalidity, uid)


def _named(messages: Sequence[RawMessage]) -> dict[int, str]:
    return {message.envelope.uid: message.envelope.email_id for message in messages}
