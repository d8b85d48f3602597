"""Compares a sink with what it is owed, entry by entry, in bounded memory.

    ledger, in order of arrival ▶ sorted runs on the disk ──┐
    sink, as it lies there ───▶ sorted runs on the disk ──┴─▶ merged by identity ─▶ missing, altered, not ours, twice

The runs have identities and digests, no mail; they lie in a private temporary directory and are gone at the end.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from heapq import merge
from itertools import groupby
from operator import itemgetter
from time import monotonic
from typing import IO, Any, Self

from email_ingestion.blobs import BlobStore
from email_ingestion.email_json import as_json
from email_ingestion.errors import EmailIngestionError, SinkUnavailable
from email_ingestion.ledger.owed_mail import LEDGER_SINK, OwedMessage, is_consistent
from email_ingestion.ledger.store import Ledger, content_of
from email_ingestion.parsing import parse
from email_ingestion.reconcile.consumer_report import PART, ConsumerReport, SecondLook
from email_ingestion.reconcile.record_digest import digest_of_record, digest_of_rows
from email_ingestion.reconcile.sink_contents import SinkContents

RUN_ENTRIES = 50_000  # that are sorted in memory: about 20 MB
_OWED, _KEPT = 0, 1
_Entry = list[Any]


class SortedRuns:
    """Sorts more entries than memory holds: lists of JSON values that begin with texts."""

    def __init__(self, size: int = RUN_ENTRIES) -> None:
        self._size = size
        self._latest: list[_Entry] = []
        self._cleanup = ExitStack()
        self._runs: list[IO[str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def add(self, entry: _Entry) -> None:
        """Add an entry."""
        self._latest.append(entry)
        if len(self._latest) >= self._size:
            self._latest.sort()
            run = tempfile.TemporaryFile("w+", prefix="email-ingestion-")  # noqa: SIM115 - closed at the end
            self._cleanup.enter_context(run)
            run.writelines(json.dumps(each) + "\n" for each in self._latest)
            self._runs.append(run)
            self._latest.clear()

    def sorted(self) -> Iterator[_Entry]:
        """Yield all entries in their order."""
        self._latest.sort()
        for run in self._runs:
            run.seek(0)
        return merge(self._latest, *(map(json.loads, run) for run in self._runs))


class SinkComparison:
    """One comparison. `steps` yields after each thousand entries or so; then `report` has what was found."""

    def __init__(
        self,
        ledger: Ledger,
        blobs: BlobStore,
        sink: str,
        contents: SinkContents,
        resend: Callable[[list[str]], int] | None = None,
    ) -> None:
        self.report = ConsumerReport(sink)
        self.looked_at = 0
        self._ledger = ledger
        self._blobs = blobs
        self._contents = contents
        self._look = SecondLook(ledger, self.report, ledger.owed.now(), resend)

    def steps(self) -> Iterator[None]:
        """Compare. Raises SinkUnavailable when the database or the sink is away."""
        started = monotonic()
        with SortedRuns() as runs:
            for owed in _parts(self._ledger.owed.all_mail(self.report.sink)):
                for entry in self._expected(owed):
                    runs.add(entry)
                self.looked_at += len(owed)
                yield
            for part in _parts(self._contents.entries()):
                for kept in part:
                    runs.add([kept.email_id, _KEPT, kept.sha256, kept.record, kept.month])
                self.looked_at += len(part)
                yield
            self.report.foreign += self._contents.foreign
            self.report.unreadable += self._contents.unreadable
            for same in _parts(groupby(runs.sorted(), key=itemgetter(0)), listed=True):
                for email_id, entries in same:
                    self._compare(email_id, entries)
                yield
        self._look.finish()
        self.report.seconds = monotonic() - started

    def _expected(self, owed: list[OwedMessage]) -> Iterator[_Entry]:
        digests: dict[str, str] = {}
        if self._contents.has_records and not self._contents.presence:
            rows = self._ledger.owed.record_rows([each.email_id for each in owed])
            digests = {row.email_id: digest_of_rows(row, parts) for row, parts in rows}
        for each in owed:
            if self._look.count_owed(each):
                yield [each.email_id, _OWED, each.sha256, digests.get(each.email_id, ""), ""]
            else:
                yield [each.email_id, _OWED, None, None, ""]

    def _compare(self, email_id: str, entries: list[_Entry]) -> None:
        kept = [entry for entry in entries if entry[1] == _KEPT]
        month = kept[0][4] if kept else ""
        if entries[0][1] == _KEPT:
            self._look.find_extra(email_id, month)
            return
        _, _, sha256, record, _ = entries[0]
        if len(kept) > 1:
            account, _, _ = email_id.rpartition(":")[0].rpartition(":")
            self.report.count("duplicates", account, month, len(kept) - 1)
        if sha256 is None:
            return
        if kept:
            if not any(self._is_same(email_id, sha256, record, each) for each in kept):
                self._look.suspect(email_id, "altered")
        elif self._contents.gone_is_missing:
            self._look.suspect(email_id, "missing")
        else:
            self.report.unknown += 1

    def _is_same(self, email_id: str, sha256: str, record: str, kept: _Entry) -> bool:
        if self._contents.presence:
            return True
        if self._contents.has_bytes and kept[2] != sha256:
            return False
        return not self._contents.has_records or kept[3] in {record, self._record_of_today(email_id, kept[3], record)}

    def _record_of_today(self, email_id: str, found: str, record: str) -> str:
        """Return the digest of the record that today's parser makes: the ledger may still have an older one."""
        facts = None if found == record else self._ledger.stored_facts(email_id)
        if facts is None:
            return record
        try:
            raw = content_of(facts.raw_ref, self._ledger, self._blobs)
            return digest_of_record(as_json(parse(facts.envelope, raw)))
        except SinkUnavailable:
            raise
        except EmailIngestionError:
            return record


class LedgerComparison:
    """The comparison of the database with itself: every row with its identity, and with the bytes it refers to."""

    def __init__(self, ledger: Ledger, blobs: BlobStore, *, presence: bool) -> None:
        self.report = ConsumerReport(LEDGER_SINK)
        self.looked_at = 0
        self._ledger = ledger
        self._blobs = blobs
        self._presence = presence

    def steps(self) -> Iterator[None]:
        """Compare. Raises SinkUnavailable when the database or the blob store is away."""
        started = monotonic()
        for part in _parts(self._ledger.owed.all_mail(LEDGER_SINK)):
            rows = {}
            if not self._presence:
                found = self._ledger.owed.record_rows([each.email_id for each in part])
                rows = {row.email_id: row for row, _ in found}
            for each in part:
                self.report.count("owed", each.account, f"{each.internaldate:%Y-%m}")
                if each.email_id in rows:  # else it was erased in this moment
                    self._compare(each, rows[each.email_id])
            self.looked_at += len(part)
            yield
        for email_id in sorted(self._ledger.owed.orphans()):
            account = email_id.rpartition(":")[0].rpartition(":")[0]
            self._find("missing", email_id, account, "")
        self.report.seconds = monotonic() - started

    def _compare(self, message: OwedMessage, row: Any) -> None:
        month = f"{message.internaldate:%Y-%m}"
        if not is_consistent(row):
            self._find("altered", message.email_id, message.account, month)
            return
        try:
            content_of(row.raw_ref, self._ledger, self._blobs)
        except SinkUnavailable:
            raise
        except EmailIngestionError as error:
            what = "altered" if "damaged" in str(error) else "missing"
            self._find(what, message.email_id, message.account, month)

    def _find(self, what: str, email_id: str, account: str, month: str) -> None:
        self.report.count(what, account, month)
        if len(self.report.named[what]) < PART:
            self.report.named[what].append(email_id)


def _parts(items: Iterable[Any], *, listed: bool = False) -> Iterator[list[Any]]:
    """Yield lists of up to PART items; `listed`: each is a key and a group, which is over with the next one."""
    part: list[Any] = []
    for item in items:
        part.append((item[0], list(item[1])) if listed else item)
        if len(part) >= PART:
            yield part
            part = []
    if part:
        yield part
