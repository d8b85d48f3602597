"""What is known of a mailbox's mail: delivered, queued, a dead letter, or purged.

The stream is asked first, then the dead letters, then the stream again, and the ledger last, because mail only moves
along that line, or from the dead letters to the end of the stream: so nothing slips through.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from email_ingestion.ledger.model import Location, RecordedMessage, content_identity, describe_place
from email_ingestion.mailbox import MessageSummary
from email_ingestion.mailbox.imap_mailbox import SelectedMailbox
from email_ingestion.producer.place_evidence import FetchMessageIds, find_contradicted
from email_ingestion.records import RawMessage, ServerDefect, email_id
from email_ingestion.stream import EntryScanner
from email_ingestion.stream.entry_scan import BEGINNING, EntryPage, ScannedEntry

if TYPE_CHECKING:
    from email_ingestion.ledger.store import Ledger

LEDGER_PAGE = 10_000  # rows of the ledger that are in memory together

QueueState = Literal["queued", "dead"]


@dataclass(slots=True)
class _EntrySet:
    gm_msgids: set[int] = field(default_factory=set)
    digests: set[bytes] = field(default_factory=set)
    # By mailbox and UIDVALIDITY: the UIDs, with the INTERNALDATE of the newest entry from there.
    uids: dict[tuple[str, int], dict[int, str]] = field(default_factory=dict)

    def add(self, entry: ScannedEntry) -> None:
        if entry.gm_msgid is not None:
            self.gm_msgids.add(entry.gm_msgid)
            return
        self.digests.add(_digest(entry.sha256))
        self.uids.setdefault((entry.mailbox, entry.uidvalidity), {})[entry.uid] = entry.internaldate

    def has(self, location: Location, internaldate: datetime | None) -> bool:
        dates = self.uids.get((location.mailbox, location.uidvalidity), {})
        return location.uid in dates and (not internaldate or dates[location.uid] == internaldate.isoformat())


class InFlight:
    """One account's messages that were queued or dead letters at the last `refresh`.

    A number for each message where the server has X-GM-EXT-1 (some 60 bytes), else a digest and a UID: bounded by what
    Redis holds, whatever the size of the mailbox. It may be kept for a while: a message found here stays known, because
    from here it goes nowhere but into the ledger or among the dead letters.
    """

    def __init__(self, scanner: EntryScanner, account: str) -> None:
        self._scanner = scanner
        self._account = account
        self._entries: dict[QueueState, _EntrySet] = {"queued": _EntrySet(), "dead": _EntrySet()}
        self._last_entry_id = BEGINNING
        self._complete = False

    @property
    def last_entry_id(self) -> str:
        """The id of the last entry of the stream that was read."""
        return self._last_entry_id

    def refresh(self) -> None:
        """Read everything, or, from the second time on, what was appended since; raises as `RedisLink.call` does."""
        self._read_stream()
        if self._complete:
            return
        self._add("dead", self._scanner.dead_letter_pages())
        self._read_stream()  # a dead letter replayed meanwhile
        self._complete = True

    def ensure_read(self) -> None:
        """Refresh unless that was done before."""
        if not self._complete:
            self.refresh()

    def by_gm_msgid(self, gm_msgid: int) -> QueueState | None:
        """Return where the message with this X-GM-MSGID is."""
        return self._find(lambda entries: gm_msgid in entries.gm_msgids)

    def by_location(self, location: Location, internaldate: datetime | None = None) -> QueueState | None:
        """Return where the message from this mailbox and UID is, on a server without X-GM-EXT-1.

        One with another date is another message: a server that was restored from a backup gives UIDs out anew.
        """
        return self._find(lambda entries: entries.has(location, internaldate))

    def has_within(self, mailbox: str, uidvalidity: int, ranges: Sequence[tuple[int, int]]) -> bool:
        """Whether a message from these UIDs (ascending ranges) is queued, on a server without X-GM-EXT-1."""
        uids = self._entries["queued"].uids.get((mailbox, uidvalidity), {})
        starts = [low for low, _ in ranges]
        return any((at := bisect_right(starts, uid)) and uid <= ranges[at - 1][1] for uid in uids)

    def by_sha256(self, sha256: str) -> QueueState | None:
        """Return where the message with these bytes is, on a server without X-GM-EXT-1."""
        return self._find(lambda entries: _digest(sha256) in entries.digests)

    def _read_stream(self) -> None:
        self._last_entry_id = (
            self._add("queued", self._scanner.stream_pages(self._last_entry_id)) or self._last_entry_id
        )

    def _add(self, state: QueueState, pages: Iterable[EntryPage]) -> str | None:
        last = None
        for page in pages:
            last = page.last
            for entry in page.entries:
                if entry.account == self._account:
                    self._entries[state].add(entry)
        return last

    def _find(self, contains: Callable[[_EntrySet], bool]) -> QueueState | None:
        return next((state for state, entries in self._entries.items() if contains(entries)), None)


def _digest(sha256: str) -> bytes:
    """Return half the size of the hexadecimal text; a damaged entry may have any text."""
    try:
        return bytes.fromhex(sha256)
    except ValueError:
        return sha256.encode()


@dataclass(frozen=True, slots=True)
class LedgerUids:
    """What the ledger has of a range of UIDs of one mailbox."""

    low: int
    high: int
    first_seen: set[int]  # delivered from here
    seen_again: dict[int, Location]  # delivered from elsewhere, and found here too


@dataclass(slots=True)
class Locations:
    """Where messages are, by UID; the delivered ones with the location they were first delivered from."""

    delivered: dict[int, Location] = field(default_factory=dict)
    in_flight: dict[int, QueueState] = field(default_factory=dict)
    purged: set[int] = field(default_factory=set)  # an operator gave them up

    @property
    def uids(self) -> set[int]:
        """All UIDs that are known."""
        return self.delivered.keys() | self.in_flight.keys() | self.purged


class KnownMail:
    """What is known of one mailbox of an account. Methods raise SinkUnavailable and what `RedisLink.call` raises.

    Where the ledger recognizes a message by its identity at a new location, the location is recorded, so that next time
    the location is enough.
    """

    def __init__(
        self,
        account: str,
        mailbox: SelectedMailbox,
        ledger: Callable[[], Ledger],
        in_flight: InFlight,
        fetch_message_ids: FetchMessageIds = lambda _: {},
    ) -> None:
        self._fetch_message_ids = fetch_message_ids
        self._account = account
        self._mailbox = mailbox
        self._ledger = ledger
        self._in_flight = in_flight
        self._had_mail: bool | None = None  # whether the ledger had any mail of the account; None: not asked yet

    def refresh(self) -> str:
        """Read what was appended to the stream; return the id of the last entry that was read."""
        self._in_flight.refresh()
        self._had_mail = self._had_mail or None
        return self._in_flight.last_entry_id

    def first_delivery_date(self) -> datetime | None:
        """Return the date of the first message delivered from the mailbox."""
        return self._ledger().first_delivery_date(self._account, self._mailbox.name)

    def recorded(self, low: int, high: int) -> Iterator[LedgerUids]:
        """Return what the ledger has of the UIDs from `low` to `high`, in ascending ranges of bounded size.

        The ledger also has what was deleted on the server, so a range where the server has few messages may have many.
        """
        self._in_flight.ensure_read()
        here = (self._account, self._mailbox.name, self._mailbox.uidvalidity)
        while low <= high:
            ledger = self._ledger()
            first_seen = ledger.known_uids(*here, low, high, limit=LEDGER_PAGE)
            seen_again = ledger.other_locations(*here, low, high, limit=LEDGER_PAGE)
            tops = [max(some) for some in (first_seen, seen_again) if len(some) == LEDGER_PAGE]
            top = min([high, *tops])
            yield LedgerUids(
                low,
                top,
                {uid for uid in first_seen if uid <= top},
                {uid: location for uid, location in seen_again.items() if uid <= top},
            )
            low = top + 1

    def uids(self, summaries: Sequence[MessageSummary]) -> set[int]:
        """Return the UIDs of the messages (ascending) that are delivered, queued, dead or purged.

        A UID under which another message was recorded is not known by that.
        """
        listed = {each.uid for each in summaries}
        known: set[int] = set()
        for recorded in self.recorded(summaries[0].uid, summaries[-1].uid):
            known |= listed & (recorded.first_seen | recorded.seen_again.keys())
        known -= self.contradicted([summary for summary in summaries if summary.uid in known])
        return known | self.locate([summary for summary in summaries if summary.uid not in known]).uids

    def contradicted(self, summaries: Sequence[MessageSummary]) -> set[int]:
        """Return the UIDs under which the server has other messages than the ledger; raises IMAPConnectionError."""
        return find_contradicted(summaries, self.recorded_at([each.uid for each in summaries]), self._fetch_message_ids)

    def recorded_at(self, uids: Sequence[int]) -> dict[int, list[RecordedMessage]]:
        """Return what the ledger has of these UIDs."""
        mailbox = self._mailbox
        return self._ledger().recorded_at(self._account, mailbox.name, mailbox.uidvalidity, uids) if uids else {}

    def not_noted(self, vanished: Collection[int]) -> dict[int, str]:
        """Return the messages of UIDs that the server does not list, without those that are noted as deleted."""
        return self._ledger().server_state.not_noted(*self._here, vanished)

    def places(self, email_ids: Collection[str]) -> dict[str, set[Location]]:
        """Return all places where messages were seen."""
        return self._ledger().server_state.places(email_ids)

    def note_deleted(self, email_ids: Collection[str]) -> None:
        """Note that the server does not have these messages any more."""
        self._ledger().server_state.note_deleted(self._mailbox.name, email_ids)

    def note_restored(self, low: int, high: int, listed: Collection[int]) -> None:
        """Note which messages that were noted as deleted the server lists again, of the UIDs from `low` to `high`."""
        state = self._ledger().server_state
        if back := state.listed_again(*self._here, listed, (low, high)):
            state.note_restored(self._mailbox.name, back)

    @property
    def _here(self) -> tuple[str, str, int]:
        return self._account, self._mailbox.name, self._mailbox.uidvalidity

    def newest_uids(self, low: int, high: int, count: int) -> list[int]:
        """Return the highest UIDs from `low` to `high` from which the ledger has messages."""
        mailbox = self._mailbox
        return self._ledger().newest_uids(self._account, mailbox.name, mailbox.uidvalidity, low, high, count=count)

    def locate(self, summaries: Sequence[MessageSummary]) -> Locations:
        """Return where messages are, of which the ledger does not know the location."""
        self._in_flight.ensure_read()
        locations = Locations()
        for summary in summaries:
            state = (
                self._in_flight.by_location(self._location(summary.uid), _date(summary))
                if summary.gm_msgid is None
                else self._in_flight.by_gm_msgid(summary.gm_msgid)
            )
            if state:
                locations.in_flight[summary.uid] = state
        ids = {each.uid: email_id(self._account, each.gm_msgid, "") for each in summaries if each.gm_msgid is not None}
        # Without X-GM-EXT-1 what was erased is recognized at its place, or else it would be fetched each time.
        erasable = {each.uid: (self._place(each),) for each in summaries if each.gm_msgid is None}
        return self._add_ledger(ids, locations, erasable)

    def locate_by_content(self, messages: Sequence[RawMessage]) -> Locations:
        """Return where messages are, by the identity that their bytes give."""
        return self._add_ledger(_ids_by_uid(messages), self._locate_in_flight(messages), _by_content(messages))

    def known_ids(self, messages: Sequence[RawMessage]) -> set[str]:
        """Return the identities of the messages that are delivered, queued, dead or purged.

        On a first run the ledger is not asked for every message: it had none at the last check. The mail it got since
        came through the stream, as these will; should one be the same message once more, the worker sees that.
        """
        locations = self._locate_in_flight(messages)
        if self._had_mail is None:
            self._had_mail = self._ledger().has_mail(self._account)
        if self._had_mail:
            locations = self._add_ledger(_ids_by_uid(messages), locations, _by_content(messages))
        known = locations.uids
        return {message.envelope.email_id for message in messages if message.envelope.uid in known}

    def _locate_in_flight(self, messages: Sequence[RawMessage]) -> Locations:
        """Return what Redis knows, which is asked before the ledger."""
        self._in_flight.ensure_read()
        locations = Locations()
        for message in messages:
            envelope = message.envelope
            state = (
                self._in_flight.by_sha256(envelope.sha256)
                if envelope.gm_msgid is None
                else self._in_flight.by_gm_msgid(envelope.gm_msgid)
            )
            if state:
                locations.in_flight[envelope.uid] = state
        return locations

    def _add_ledger(
        self, ids: Mapping[int, str], locations: Locations, erasable: Mapping[int, tuple[str, ...]]
    ) -> Locations:
        """Complete `locations` with what the ledger knows, which is asked last.

        `erasable` are further names under which a message may have been erased.
        """
        locations.delivered = self._delivered(ids)
        names = {uid: erasable.get(uid, ()) for uid in {*ids, *erasable} if uid not in locations.delivered}
        names = {uid: (*more, *([ids[uid]] if uid in ids else ())) for uid, more in names.items()}
        purged = self._ledger().purged({name for more in names.values() for name in more})
        locations.purged = {uid for uid, more in names.items() if not purged.isdisjoint(more)}
        return locations

    def _delivered(self, ids: Mapping[int, str]) -> dict[int, Location]:
        ledger = self._ledger()
        first_locations = ledger.first_locations(ids.values())
        found = {uid: identity for uid, identity in ids.items() if identity in first_locations}
        here = {self._location(uid): identity for uid, identity in found.items()}
        new = {location: identity for location, identity in here.items() if first_locations[identity] != location}
        ledger.record_locations(self._account, new)
        return {uid: first_locations[identity] for uid, identity in found.items()}

    def _place(self, summary: MessageSummary) -> str:
        return describe_place(self._account, self._location(summary.uid), summary.size, summary.internaldate)

    def _location(self, uid: int) -> Location:
        return Location(self._mailbox.name, self._mailbox.uidvalidity, uid)


def _date(summary: MessageSummary) -> datetime | None:
    """Return the date that the server states, None where that is no date of its own."""
    return None if ServerDefect.INTERNALDATE in summary.defects else summary.internaldate


def _ids_by_uid(messages: Sequence[RawMessage]) -> dict[int, str]:
    return {message.envelope.uid: message.envelope.email_id for message in messages}


def _by_content(messages: Sequence[RawMessage]) -> dict[int, tuple[str, ...]]:
    """Return the identities by content of messages whose identity is another, by UID."""
    return {
        message.envelope.uid: (content_identity(message.envelope),)
        for message in messages
        if message.envelope.gm_msgid is not None
    }
