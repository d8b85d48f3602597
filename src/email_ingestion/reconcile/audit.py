r"""Compares one opened mailbox with what became of its mail, window by window, and fills the gaps it finds.

UIDs (≤ 5,000) ─▶ place in the ledger? ─no─▶ outlines (≤ 500) ─▶ compare ─missing─▶ bodies (≤ 4 MB) ─▶ append
                        └─ yes: delivered                           └─ delivered, queued, dead, excluded

Nothing larger than a window is ever held. Bodies are fetched to fill a gap, and where only they tell the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from email_ingestion.events import Observe, Published, Reconciled
from email_ingestion.ledger.records import Place
from email_ingestion.mailbox import ImapMailbox, MessageSummary
from email_ingestion.mailbox.imap_mailbox import MAX_FETCH_UIDS, UID_WINDOW, SelectedMailbox
from email_ingestion.producer.choice import Rules, portions
from email_ingestion.producer.fetch import PORTION_BYTES, Fetch
from email_ingestion.reconcile.accounted import Accounted, Evidence
from email_ingestion.reconcile.report import Report, Verdict, compare
from email_ingestion.records import RawMessage
from email_ingestion.stream import Appender, Gaps

LAST_UID = 2**32 - 1  # RFC 3501, section 2.3.1.1


class Audit:
    """One comparison on one connection. `has_room` makes it repair: False puts a portion off to the next audit."""

    def __init__(
        self,
        account: str,
        connection: ImapMailbox,
        opened: SelectedMailbox,
        *,
        intake: Appender,
        gaps: Gaps,
        fetch: Fetch,
        rules: Rules,
        accounted: Accounted,
        has_room: Callable[[], bool] | None,
        observe: Observe,
    ) -> None:
        self._account = account
        self._connection = connection
        self._opened = opened
        self._intake = intake
        self._gaps = gaps
        self._fetch = fetch
        self._rules = rules
        self._accounted = accounted
        self._has_room = has_room
        self._observe = observe
        self._rescan = 0
        self._from = 1
        self.report = Report(account, opened.name, opened.uidvalidity, 0)
        self.at = 0  # the last UID that was looked at

    def run(self) -> Report:
        """Go through everything at once; raises what `steps` raises."""
        for _ in self.steps():
            pass
        return self.report

    def steps(self) -> Iterator[None]:
        """Go through everything, pausing often; `report` is complete at the end.

        Raises IMAPConnectionError, RedisConnectionError, CircuitBreakerError, SinkUnavailable; what was filled before
        stays, and the next audit finds it queued.
        """
        self._set_out()
        upto = self.report.upto
        for low in range(self._from, upto + 1, UID_WINDOW):
            yield from self._window(low, min(low + UID_WINDOW - 1, upto))
        report = self.report
        report.ahead = self._ahead(upto + 1) + self._still_to_come()
        report.unexpected = max(0, report.unexpected)  # moved twice
        self._observe(Reconciled(self._account, report.missing, report.duplicate, report.unexpected, report.mailbox))

    def _ahead(self, low: int) -> int:
        count = 0
        while low + UID_WINDOW < self._opened.uidnext:
            count += len(self._connection.list_uids(low, low + UID_WINDOW - 1))
            low += UID_WINDOW
        return count + len(self._connection.list_uids(low, LAST_UID))

    def _still_to_come(self) -> int:
        """Older mail that the producer has not walked back to yet."""
        windows = range(1, self._from, UID_WINDOW)
        return sum(len(self._connection.list_uids(low, min(low + UID_WINDOW, self._from) - 1)) for low in windows)

    def _set_out(self) -> None:
        """The cursor is read before anything else: what it accounts for is in the stream before we look there."""
        cursor = self._intake.cursor(self._account, self._opened.name)
        current = cursor if cursor and cursor.uidvalidity == self._opened.uidvalidity else None
        newest = max(0, self._opened.uidnext - 1)
        self.report.upto = current.uid if current else newest
        self._from = current.history if current else 1
        self._rescan = current.rescan if current else newest
        self._accounted.look()

    def _window(self, low: int, high: int) -> Iterator[None]:
        listed = self._connection.list_uids(low, high)
        recorded = self._accounted.recorded(low, high)
        known = [uid for uid in listed if uid in recorded.first or uid in recorded.again]
        self.report.count(dict.fromkeys(known, "delivered"))
        self.report.unexpected += len(recorded.first.difference(listed))
        self._count_copies({uid: recorded.again[uid] for uid in known if uid in recorded.again})
        rest = sorted(set(listed).difference(known))
        for start in range(0, len(rest), MAX_FETCH_UIDS):
            self._stretch(rest[start : start + MAX_FETCH_UIDS])
            self.at = rest[min(start + MAX_FETCH_UIDS, len(rest)) - 1]
            yield
        self.at = high
        yield

    def _stretch(self, uids: Sequence[int]) -> None:
        """Settle messages whose place the ledger does not know."""
        outlines = self._fetch.outlines(uids)
        self._count_refused()
        evidence = self._accounted.evidence(outlines)
        verdicts = self._compare(outlines, evidence)
        self._count_copies(evidence.delivered)
        doubtful = [outline for outline in outlines if verdicts[outline.uid] == "missing"]
        if self._has_room or any(outline.gm_msgid is None for outline in doubtful):
            self.report.count({uid: verdict for uid, verdict in verdicts.items() if verdict != "missing"})
            self._settle(doubtful)
        else:
            self.report.count(verdicts)

    def _compare(self, outlines: Sequence[MessageSummary], evidence: Evidence) -> dict[int, Verdict]:
        old = [outline for outline in outlines if outline.uid <= self._rescan]
        verdicts = compare(outlines[len(old) :], evidence, self._rules)
        return verdicts | compare(old, evidence, self._rules.for_old_mail(self._accounted.begun)) if old else verdicts

    def _settle(self, doubtful: Sequence[MessageSummary]) -> None:
        """Fetch what seems to be missing; what still is after a second look is filled in."""
        uids = {outline.uid for outline in doubtful}
        for portion in portions(doubtful, uids, max(uids, default=0), PORTION_BYTES):
            if not portion.wanted:
                continue
            room = self._has_room is not None and self._has_room()
            if not room and portion.wanted[0].gm_msgid is not None:
                self.report.count(dict.fromkeys([outline.uid for outline in portion.wanted], "missing"))
                continue
            messages = list(self._fetch.messages(portion.wanted))
            self._count_refused()
            seen = self._accounted.look()
            evidence = self._accounted.evidence_of(messages)
            missing = [message for message in messages if message.envelope.uid not in evidence.uids]
            verdicts: dict[int, Verdict] = {message.envelope.uid: "missing" for message in missing}
            verdicts |= dict.fromkeys(evidence.purged, "purged")
            verdicts |= evidence.underway | dict.fromkeys(evidence.delivered, "delivered")
            self.report.count(verdicts)
            self._count_copies(evidence.delivered)
            if room and missing:
                self._fill(missing, seen)

    def _count_refused(self) -> None:
        """What the server lists but does not send is missing until it does."""
        self.report.count(dict.fromkeys(self._fetch.take_refused(), "missing"))

    def _fill(self, missing: Sequence[RawMessage], seen: str) -> None:
        added = self._gaps.fill(missing, seen)
        self.report.repaired += len(missing)  # what was not added, somebody else has added meanwhile
        ids = tuple(message.envelope.email_id for message in missing)
        size = sum(message.envelope.size for message in missing)
        self._observe(Published(self._account, self._opened.name, ids, added, size))

    def _count_copies(self, delivered: Mapping[int, Place]) -> None:
        """Messages the ledger has from another UID: a copy if that is still there, else the message was moved."""
        here = (self._opened.name, self._opened.uidvalidity)
        others = {place.uid for uid, place in delivered.items() if (place.mailbox, place.uidvalidity) == here}
        others = {uid for uid in others if uid <= self.report.upto}
        listed = self._listed(sorted(others))
        for uid, place in delivered.items():
            if place.uid in others and (place.mailbox, place.uidvalidity) == here and place.uid != uid:
                if place.uid in listed:
                    self.report.duplicate += 1
                else:
                    self.report.unexpected -= 1  # counted where it was: it is still here

    def _listed(self, uids: Sequence[int]) -> set[int]:
        chunks = [uids[start : start + MAX_FETCH_UIDS] for start in range(0, len(uids), MAX_FETCH_UIDS)]
        return {outline.uid for chunk in chunks for outline in self._connection.fetch_summaries(chunk)}
