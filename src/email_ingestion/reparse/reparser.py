"""Parse stored messages again, several at a time in processes of their own, and replace their records in order.

identities ─▶ part (100 messages) ─▶ thread: records and raw bytes ─▶ parser process ─▶ routes ─▶ what differs
                                                                                                    │
                                                 one transaction of the database for each part ◀────┘

What is done is marked in its row, so a run that was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import queue
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from email_ingestion.blobs import BlobStore
from email_ingestion.errors import ParserDied, SinkUnavailable, TransientError
from email_ingestion.ledger.model import Content, StoredEmail
from email_ingestion.ledger.record_updates import RecordChoice, StoredRecord
from email_ingestion.ledger.store import Ledger
from email_ingestion.parsing.isolated import IsolatedParser
from email_ingestion.records import Email, Envelope, ServerDefect
from email_ingestion.routing import Router

PART_MESSAGES = 100
PART_BYTES = 8 * 1024 * 1024  # of raw messages in one part, or a single larger one
CHOSEN = 20_000  # identities read at once
PARTS_PER_PARSER = 2  # the next one is there when it has done one
SERVER_DEFECTS = frozenset(one.value for one in ServerDefect)  # which no parser finds
EXAMPLES = 3  # messages named for each field


@dataclass
class ReparseSummary:
    """What a run found; it grows while the run goes on."""

    checked: int = 0
    changed: int = 0
    unchanged: int = 0
    failed: dict[str, str] = field(default_factory=dict)  # why, by identity
    fields: Counter[str] = field(default_factory=Counter)  # in how many records each differs
    examples: dict[str, list[str]] = field(default_factory=dict)  # identities, by field


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of one message."""

    email_id: str
    fresh: StoredEmail | None = None  # None: it could not be parsed
    fields: Sequence[str] = ()  # that differ
    lost: frozenset[str] = frozenset()  # contents that the fresh record has no longer
    reason: str = ""


class Reparser:
    """One run over a ledger. `let_live_mail_pass` is called before each part."""

    def __init__(
        self,
        ledger: Ledger,
        blobs: BlobStore,
        router: Router,
        *,
        threshold: int,
        processes: int,
        timeout: float,
        let_live_mail_pass: Callable[[], object],
    ) -> None:
        """`threshold`: the bytes above which a content goes into the blob store; `timeout`: seconds for a part."""
        self._ledger = ledger
        self._records = ledger.records
        self._blobs = blobs
        self._router = router
        self._threshold = threshold
        self._let_live_mail_pass = let_live_mail_pass
        self._parsers = [IsolatedParser(timeout) for _ in range(processes)]
        self._idle: queue.SimpleQueue[IsolatedParser] = queue.SimpleQueue()
        self._abandoned = False
        self._lost: set[str] = set()
        self.summary = ReparseSummary()

    def run(self, choice: RecordChoice, *, dry_run: bool = False, only_changed: bool = False) -> Iterator[int]:
        """Yield the number of messages done after each part.

        `dry_run` writes nothing, `only_changed` leaves rows that stay as they are without the mark of this parser.
        """
        for parser in self._parsers:
            self._idle.put(parser)
        with self._threads() as threads:
            for outcomes in self._in_order(threads, self._parts(choice)):
                if not dry_run:
                    outcomes = self._write(outcomes, only_changed=only_changed)  # noqa: PLW2901
                self._sum_up(outcomes)
                yield len(outcomes)
        if self._lost:
            self._records.remove_unreferenced(self._lost)

    @contextmanager
    def _threads(self) -> Iterator[ThreadPoolExecutor]:
        threads = ThreadPoolExecutor(len(self._parsers), thread_name_prefix="reparse")
        try:
            yield threads
        finally:  # also when the run is abandoned: a parser must not be waited for
            self._abandoned = True
            for parser in self._parsers:
                parser.interrupt()
            threads.shutdown(cancel_futures=True)
            for parser in self._parsers:
                parser.close()

    def _parts(self, choice: RecordChoice) -> Iterator[list[str]]:
        after = ""
        while chosen := self._records.choose(choice, after, CHOSEN):
            after = chosen[-1][0]
            yield from _cut(chosen)

    def _in_order(self, threads: ThreadPoolExecutor, parts: Iterator[list[str]]) -> Iterator[list[_Outcome]]:
        running: deque[Future[list[_Outcome]]] = deque()
        for part in parts:
            self._let_live_mail_pass()
            running.append(threads.submit(self._parse_part, part))
            if len(running) >= PARTS_PER_PARSER * len(self._parsers):
                yield running.popleft().result()
        while running:
            yield running.popleft().result()

    def _parse_part(self, email_ids: list[str]) -> list[_Outcome]:
        parser = self._idle.get()
        try:
            stored = self._records.load(email_ids)
            found = self._records.contents(each.raw_ref for each in stored)
            raws = [found.get(each.raw_ref) for each in stored]
            raws = [self._fetch(each) if raw is None else raw for each, raw in zip(stored, raws, strict=True)]
            emails = self._parse(parser, [(each.envelope, raw) for each, raw in zip(stored, raws, strict=True)])
        finally:
            self._idle.put(parser)
        return [self._judge(each, email) for each, email in zip(stored, emails, strict=True)]

    def _fetch(self, stored: StoredRecord) -> bytes | None:
        try:
            return self._blobs.get(stored.raw_ref)
        except SinkUnavailable:
            raise
        except TransientError:
            return None

    def _parse(self, parser: IsolatedParser, messages: Sequence[tuple[Envelope, bytes | None]]) -> list[Email | str]:
        """Return the record of each message, or why there is none."""
        found: dict[int, Email | str] = {}
        sound: list[tuple[int, tuple[Envelope, bytes]]] = []
        for number, (envelope, raw) in enumerate(messages):
            if raw is None:
                found[number] = "its raw bytes are missing"
            elif hashlib.sha256(raw).hexdigest() != envelope.sha256:
                found[number] = "its raw bytes are damaged"
            else:
                sound.append((number, (envelope, raw)))
        try:
            emails: list[Email | str] = list(parser.parse([message for _, message in sound]) if sound else [])
        except ParserDied:  # one of them: each alone, so that only that one fails
            emails = [self._parse_alone(parser, message) for _, message in sound]
        found |= {number: email for (number, _), email in zip(sound, emails, strict=True)}
        return [found[number] for number in range(len(messages))]

    def _parse_alone(self, parser: IsolatedParser, message: tuple[Envelope, bytes]) -> Email | str:
        if self._abandoned:
            return "the run was abandoned"
        try:
            return parser.parse([message])[0]
        except ParserDied as error:
            return str(error)

    def _judge(self, stored: StoredRecord, email: Email | str) -> _Outcome:
        if isinstance(email, str):
            return _Outcome(stored.envelope.email_id, reason=email)
        of_server = tuple(code for code in stored.parsed["defects"] if code in SERVER_DEFECTS)
        decision = self._router.decide(replace(email, defects=of_server + email.defects) if of_server else email)
        routed = decision.email
        fresh = StoredEmail(routed, stored.raw_ref, retention_days=decision.retention_days)
        fields = stored.changes(fresh)
        if "attachments" not in fields:
            return _Outcome(email.email_id, replace(fresh, email=_without_contents(routed)), fields)
        known = {each["sha256"] for each in stored.attachments}
        contents = tuple(Content(one.sha256, one.content) for one in routed.attachments if one.sha256 not in known)
        lost = frozenset(stored.lost_contents(fresh))
        return _Outcome(email.email_id, replace(fresh, contents=contents), fields, lost)

    def _write(self, outcomes: list[_Outcome], *, only_changed: bool) -> list[_Outcome]:
        """Write a part; return it without the messages that were deleted meanwhile."""
        changed = [self._store_large(each.fresh) for each in outcomes if each.fresh and each.fields]
        unchanged = [each.email_id for each in outcomes if each.fresh and not each.fields and not only_changed]
        other_files = {each.email_id for each in outcomes if "attachments" in each.fields}
        there = self._records.replace(changed, other_files, unchanged)
        self._lost.update(*(each.lost for each in outcomes if each.email_id in there))
        return [each for each in outcomes if each.email_id in there or not (each.fresh and each.fields)]

    def _store_large(self, fresh: StoredEmail) -> StoredEmail:
        """Store large contents before the row that refers to them is written: the other order could lose them."""
        small = []
        for content in fresh.contents:
            if len(content.data) <= self._threshold:
                small.append(content)
            else:
                self._blobs.put(content.data)
        return replace(fresh, contents=tuple(small))

    def _sum_up(self, outcomes: Sequence[_Outcome]) -> None:
        found = self.summary
        found.checked += len(outcomes)
        for each in outcomes:
            if each.fresh is None:
                found.failed[each.email_id] = each.reason
            elif each.fields:
                found.changed += 1
            else:
                found.unchanged += 1
            for name in each.fields:
                found.fields[name] += 1
                examples = found.examples.setdefault(name, [])
                if len(examples) < EXAMPLES:
                    examples.append(each.email_id)


def _cut(chosen: Sequence[tuple[str, int]]) -> Iterator[list[str]]:
    """Cut identities into parts of a bounded number and size."""
    part: list[str] = []
    total = 0
    for email_id, size in chosen:
        if part and (len(part) >= PART_MESSAGES or total + size > PART_BYTES):
            yield part
            part, total = [], 0
        part.append(email_id)
        total += size
    if part:
        yield part


def _without_contents(email: Email) -> Email:
    """Let go of the bytes of attachments that stay as they are."""
    return replace(email, attachments=tuple(replace(one, content=b"") for one in email.attachments))
