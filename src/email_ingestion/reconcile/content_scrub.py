"""Reads all stored bytes and compares them with their hashes; what is missing or damaged is fetched again.

messages of the ledger, entries of the stream, dead letters ─▶ read ─▶ sound
                                                                └─▶ fetched from the mail server ─▶ stored again
                                                                └─▶ an attachment: taken from its message again
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import IO, Literal

from email_ingestion.blobs import BlobStore, sha256_of
from email_ingestion.errors import ContentLost, EmailIngestionError, TransientError
from email_ingestion.events import ContentDamaged, ContentsVerified, Observe
from email_ingestion.ledger.model import Location
from email_ingestion.ledger.store import Ledger, content_of
from email_ingestion.ledger.stored_contents import StoredMessage
from email_ingestion.parsing import parse
from email_ingestion.reconcile.content_fetch import LostMessage
from email_ingestion.stream.entry_scan import ScannedEntry

Fault = Literal["missing", "damaged"]
# Writes the bytes of a message into a file; returns why that was impossible, or None.
FetchAgain = Callable[[LostMessage, IO[bytes]], str | None]

PAGE = 200  # messages whose contents are looked up together
SINGLE_PAUSE = 1.0  # seconds; longer pauses are made of several, so that an end is noticed


@dataclass(frozen=True, slots=True)
class ContentFault:
    """Bytes that were missing or damaged. `problem` says why they could not be had again; empty when they are back."""

    ref: str
    email_id: str
    fault: Fault
    problem: str


@dataclass(slots=True)
class ScrubReport:
    """What a scrub has found so far; sizes in bytes."""

    checked: int = 0
    size: int = 0
    faults: list[ContentFault] = field(default_factory=list)

    @property
    def lost(self) -> list[ContentFault]:
        """Those that are still missing or damaged."""
        return [each for each in self.faults if each.problem]


class ContentScrub:
    """One scrub. Without `fetch_again` it only looks.

    `entries` yields what is in Redis. `max_rate` is in bytes a second, 0 for as fast as possible; `pause` waits, and
    returns False to end the scrub. Messages up to the identity `after` were looked at by an earlier scrub that ended
    early, and found `lost_before` contents lost.
    """

    def __init__(
        self,
        store: BlobStore,
        ledger: Ledger,
        entries: Callable[[], Iterable[ScannedEntry]],
        *,
        fetch_again: FetchAgain | None = None,
        max_rate: float = 0.0,
        pause: Callable[[float], bool] = lambda _: True,
        after: str = "",
        lost_before: int = 0,
        observe: Observe = lambda _: None,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._entries = entries
        self._fetch_again = fetch_again
        self._max_rate = max_rate
        self._pause = pause
        self._lost_before = lost_before
        self._observe = observe
        self._started = time.monotonic()
        self._done: set[str] = set()  # of the present page
        self.report = ScrubReport()
        self.position = after  # the identity of the last message of the ledger that was looked at
        self.complete = False

    def steps(self) -> Iterator[None]:
        """Look at everything, a page at a time; ends early when `pause` returns False.

        Raises SinkUnavailable when the store or the database is away, and what `entries` raises: nothing is said of
        what could not be looked at.
        """
        self._store.ping()
        if not self.position:
            yield from self._redis_steps()
        messages = self._ledger.contents.messages(self.position)
        while page := list(islice(messages, PAGE)):
            if not self._verify(page):
                return
            self.position = page[-1].email_id
            yield
        self.complete = True
        checked, size, restored = self.report.checked, self.report.size, len(self.report.faults) - len(self.report.lost)
        took = time.monotonic() - self._started
        self._observe(ContentsVerified(checked, size, restored, self.lost_count, took))

    @property
    def lost_count(self) -> int:
        """How many contents are missing or damaged and could not be had again."""
        return self._lost_before + len(self.report.lost)

    def _redis_steps(self) -> Iterator[None]:
        entries = (entry for entry in self._entries() if entry.raw_ref)
        while page := list(islice(entries, PAGE)):
            if not self._verify([_as_message(entry) for entry in page]):
                return
            yield

    def _verify(self, messages: Collection[StoredMessage]) -> bool:
        """Look at the contents of some messages, raw bytes first; False to end."""
        refs = {ref for message in messages for ref in (message.raw_ref, *message.attachment_refs)}
        inside = self._ledger.contents.inside(refs)
        self._done.clear()
        for message in messages:
            for ref in (message.raw_ref, *message.attachment_refs):
                if ref not in self._done:
                    self._done.add(ref)
                    self._verify_content(message, ref, in_database=ref in inside)
                if not self._keep_rate():
                    return False
        return True

    def _verify_content(self, message: StoredMessage, ref: str, *, in_database: bool) -> None:
        self.report.checked += 1
        fault = self._fault(ref, in_database=in_database)
        if fault is None:
            return
        problem = self._restore(message, ref, in_database=in_database) if self._fetch_again else "not fetched again yet"
        self.report.faults.append(ContentFault(ref, message.email_id, fault, problem or ""))
        self._observe(ContentDamaged(message.email_id, ref, fault, problem))

    def _fault(self, ref: str, *, in_database: bool) -> Fault | None:
        digest = hashlib.sha256()
        try:
            for chunk in [self._ledger.content(ref) or b""] if in_database else self._store.chunks(ref):
                digest.update(chunk)
                self.report.size += len(chunk)
        except ContentLost:
            return "damaged" if in_database else "missing"
        return None if digest.hexdigest() == sha256_of(ref) else "damaged"

    def _restore(self, message: StoredMessage, ref: str, *, in_database: bool) -> str | None:
        """Store the bytes again; return why that was impossible, or None."""
        try:
            with self._store.open_spool() as spooled:
                if ref == message.raw_ref:
                    problem = self._fetch_raw(message, spooled)
                else:
                    problem = self._take_attachment(message, ref, spooled)
                if problem:
                    return problem
                if in_database:
                    spooled.seek(0)
                    self._ledger.contents.replace(ref, spooled.read())
                else:
                    self._store.put_file(spooled, sha256_of(ref), replace=True)
        except EmailIngestionError as error:
            return str(error)
        return None

    def _fetch_raw(self, message: StoredMessage, spooled: IO[bytes]) -> str | None:
        wanted = LostMessage(
            message.email_id,
            message.account,
            message.raw_ref,
            message.gm_msgid,
            message.message_id,
            message.locations,
        )
        return self._fetch_again(wanted, spooled) if self._fetch_again else "not fetched again yet"

    def _take_attachment(self, message: StoredMessage, ref: str, spooled: IO[bytes]) -> str | None:
        """Parse the message again, whose own bytes have been looked at before."""
        facts = self._ledger.stored_facts(message.email_id)
        if facts is None:
            return "its message is not in the database any more"
        raw = content_of(message.raw_ref, self._ledger, self._store)
        for attachment in parse(facts.envelope, raw).attachments:
            if attachment.sha256 == sha256_of(ref):
                spooled.write(attachment.content)
                return None
        return "an earlier version took this attachment out of its message: this one does not find it"

    def _keep_rate(self) -> bool:
        if not self._max_rate:
            return self._pause(0.0)
        seconds = self.report.size / self._max_rate - (time.monotonic() - self._started)
        while seconds > 0:
            if not self._pause(min(seconds, SINGLE_PAUSE)):
                return False
            seconds -= SINGLE_PAUSE
        return self._pause(0.0)


def restore_dead_letter(
    store: BlobStore, entry: ScannedEntry, fetch_again: FetchAgain, message_id: str | None = None
) -> str | None:
    """Fetch the bytes of an entry again where they are missing or damaged; return why that was impossible, or None."""
    wanted = _as_message(entry)
    try:
        store.get(entry.raw_ref)
    except ContentLost:
        pass
    else:
        return None
    with store.open_spool() as spooled:
        lost = LostMessage(
            wanted.email_id, wanted.account, wanted.raw_ref, wanted.gm_msgid, message_id, wanted.locations
        )
        try:
            problem = fetch_again(lost, spooled)
        except TransientError as error:
            return str(error)
        if problem is None:
            store.put_file(spooled, sha256_of(entry.raw_ref), replace=True)
        return problem


def _as_message(entry: ScannedEntry) -> StoredMessage:
    location = Location(entry.mailbox, entry.uidvalidity, entry.uid)
    return StoredMessage(entry.email_id, entry.account, entry.gm_msgid, None, entry.raw_ref, (), (location,))
