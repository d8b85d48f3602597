"""Fetches messages: their summaries, then their bodies, of which the large ones go into the blob store.

What came is compared with what the server announced (`size_check`), and what the conversation ends over is told apart
from the rest (`suspicion`): one message keeps no other from coming, and none is taken for whole that is not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from datetime import datetime
from functools import partial
from operator import attrgetter
from typing import IO, TypeVar

from email_ingestion.background import BackgroundThread
from email_ingestion.blobs import BlobStore, reference
from email_ingestion.errors import IMAPConnectionError
from email_ingestion.events import Downloaded, Observe, Skipped
from email_ingestion.mailbox import ImapMailbox, MessageSummary
from email_ingestion.mailbox.imap_errors import MessagesRefused
from email_ingestion.mailbox.imap_mailbox import SelectedMailbox
from email_ingestion.mailbox.message_summary import is_summary, parse_summary, readable_date
from email_ingestion.mailbox.pipelining import find_body
from email_ingestion.parsing import parse_date
from email_ingestion.producer.large_message import PieceReader, PiecesTooLong
from email_ingestion.producer.priority import PriorityOf
from email_ingestion.producer.size_check import Answer, SizeCheck, max_bytes
from email_ingestion.producer.suspicion import Suspicion
from email_ingestion.records import Envelope, RawMessage, ServerDefect

T = TypeVar("T")
Uploads = list[Future[str]]  # contents on their way into the blob store
# What a FETCH gave, by UID, and the error with which it ended, if it did.
Fetched = tuple[dict[int, T], MessagesRefused | None]

BATCH_BYTES = 1024 * 1024  # of one FETCH, or a single larger message; three batches are in flight
LARGE_BYTES = 1024 * 1024  # a message above this is fetched in pieces


class MessageFetcher:
    """Fetches from one mailbox; made anew for each connection."""

    def __init__(
        self,
        account: str,
        connection: ImapMailbox,
        mailbox: SelectedMailbox,
        *,
        suspicion: Suspicion,
        sizes: SizeCheck,
        blobs: BlobStore,
        blob_threshold: int,
        message_max_bytes: int,
        priority_of: PriorityOf,
        observe: Observe,
    ) -> None:
        self._account = account
        self._connection = connection
        self._mailbox = mailbox
        self._suspicion = suspicion
        self._sizes = sizes
        self._blobs = blobs
        self._blob_threshold = blob_threshold
        self._message_max_bytes = message_max_bytes
        self._priority_of = priority_of
        self._observe = observe
        self._failures: dict[int, Exception] = {}
        self._one_by_one = False  # in what is fetched next
        self._pieces = PieceReader(account, connection, observe)
        self._uploader = BackgroundThread("store")

    def summaries(self, uids: Sequence[int]) -> list[MessageSummary]:
        """Fetch the summaries of `uids`; refused ones are in `pop_failures`.

        Raises IMAPConnectionError, and MessageQuarantined when the conversation ended over one of them.
        """
        together, singly = self._suspicion.split(uids, "summary")
        found: dict[int, MessageSummary] = {}
        if together:
            with self._suspicion.watching(together, "summary", singly=False):
                found |= self._fetch_each(together, self._fetch_summaries)
        for uid in singly:
            with self._suspicion.watching([uid], "summary", singly=True):
                found |= self._fetch_each([uid], self._fetch_summaries)
        return [found[uid] for uid in sorted(found)]

    def prefetch(self, summaries: Sequence[MessageSummary]) -> None:
        """Have the server prepare what `messages` fetches soon, called with the same summaries. Raises as it does.

        Nothing is prepared beside messages that are asked for one by one: it must be known which of them ends the
        conversation.
        """
        small = _small(summaries)
        self._one_by_one = self._one_by_one or bool(self._suspicion.split([each.uid for each in summaries], "body")[1])
        if small and not self._one_by_one:
            self._connection.prefetch([summary.uid for summary in small], None, self._max_bytes(small))

    def messages(self, summaries: Sequence[MessageSummary], uploads: Uploads | None = None) -> Iterator[RawMessage]:
        """Fetch messages, without those that vanished or were refused; raises as `summaries`.

        Large contents are in the blob store, or with `uploads` on their way: before a message is named to others, wait
        for the futures that are added there, which raise SinkUnavailable when a content did not arrive.
        """
        return (message for message in self.steps(summaries, uploads) if message)

    def steps(self, summaries: Sequence[MessageSummary], uploads: Uploads | None = None) -> Iterator[RawMessage | None]:
        """Fetch messages as `messages` does, and yield None now and then while a large one comes."""
        bodies = self._bodies(_small(summaries))
        self._one_by_one = False
        for summary in summaries:
            if _is_large(summary):
                yield from self._in_pieces(summary, uploads)
            elif (found := bodies.pop(summary.uid, None)) is not None:
                raw, mismatch = found
                yield self._message(summary, raw, uploads, mismatch=mismatch)

    def pop_failures(self) -> dict[int, Exception]:
        """Return the UIDs that the server listed but did not send since the last call, each with its error."""
        failures, self._failures = self._failures, {}
        return failures

    @property
    def others_came(self) -> bool:
        """Whether the server has sent bodies over this connection: then a failure is that of its message."""
        return self._suspicion.others_came("body")

    # Which come at all

    def _fetch_summaries(self, uids: Sequence[int]) -> Fetched[MessageSummary]:
        try:
            return {summary.uid: summary for summary in self._connection.fetch_summaries(uids)}, None
        except MessagesRefused as error:
            return {uid: parse_summary(uid, data) for uid, data in error.found.items() if is_summary(data)}, error

    def _fetch_bodies(self, limit: int, uids: Sequence[int]) -> Fetched[bytes | None]:
        try:
            return self._connection.fetch_bodies(uids, limit), None
        except MessagesRefused as error:
            bodies = {uid: find_body(data, None) for uid, data in error.found.items()}
            return {uid: body.content for uid, body in bodies.items() if body}, error

    def _fetch_each(self, uids: Sequence[int], fetch: Callable[[Sequence[int]], Fetched[T]]) -> dict[int, T]:
        """Fetch with one command, and one by one what did not come though it is listed: no mail may be passed over.

        Refused ones are kept in `_failures`. When all of several are refused and no other came, the fault is perhaps
        the server's and no message's, so the error is raised.
        """
        found, error = fetch(uids)
        missing = [uid for uid in uids if uid not in found]
        if not missing:
            return found
        if error and len(uids) == 1:
            self._failures[uids[0]] = error
            return found
        listed = self._connection.list_present(missing)
        if vanished := len(missing) - len(listed):
            self._observe(Skipped(self._account, "vanished", vanished))
        refused: dict[int, Exception] = {}
        for uid in sorted(listed):
            one, its_error = fetch([uid])
            found |= one
            if uid not in one:
                refused[uid] = its_error or MessagesRefused(
                    "the IMAP server lists the message but does not send it", {}
                )
        if not found and len(refused) > 1:
            raise error or IMAPConnectionError("the IMAP server lists messages but does not send them")
        self._failures |= refused
        return found

    # Whether they are whole

    def _bodies(self, summaries: Sequence[MessageSummary]) -> dict[int, tuple[bytes, bool]]:
        """Fetch bodies, by UID; each with whether it has another size than announced."""
        if not summaries:
            return {}
        by_uid = {summary.uid: summary for summary in summaries}
        together, singly = self._suspicion.split(list(by_uid), "body")
        found: dict[int, tuple[bytes, bool]] = {}
        for uids, alone in [(together, False), *(([uid], True) for uid in singly)]:
            if not uids:
                continue
            with self._suspicion.watching(uids, "body", singly=alone):
                limit = self._max_bytes([by_uid[uid] for uid in uids])
                bodies = self._fetch_each(uids, partial(self._fetch_bodies, limit))
                self._observe(Downloaded(self._account, sum(len(body) for body in bodies.values() if body)))
                for uid, body in bodies.items():
                    if uid in by_uid and (whole := self._check(by_uid[uid], body)):
                        found[uid] = whole
        return found

    def _check(self, summary: MessageSummary, body: bytes | None) -> tuple[bytes, bool] | None:
        """Return the body, asked for once more if it has another size than announced; None if it cannot be taken."""
        if body is not None and self._sizes.fits(summary, len(body)):
            return body, False
        first, limit = body or b"", max_bytes(summary, self._message_max_bytes)
        if len(first) > limit:
            self._failures[summary.uid] = _too_long(summary, len(first))
            return None
        if self._sizes.is_trusted(len(first)):
            return first, True
        bodies, error = self._fetch_bodies(limit, [summary.uid])
        second = bodies.get(summary.uid) or b""
        self._observe(Downloaded(self._account, len(second)))
        answers = {_answer(first): first, _answer(second): second}
        chosen, mismatch = self._sizes.choose(summary, _answer(first), _answer(second))
        if chosen is None:
            if not (first or second or self._connection.list_present([summary.uid])):
                self._observe(Skipped(self._account, "vanished", 1))
                return None
            self._failures[summary.uid] = error or _not_whole(summary, max(len(first), len(second)))
            return None
        return answers[chosen], mismatch

    def _message(self, summary: MessageSummary, raw: bytes, uploads: Uploads | None, *, mismatch: bool) -> RawMessage:
        envelope = self._envelope(summary, len(raw), hashlib.sha256(raw).hexdigest(), raw)
        priority, defects = self._priority_of(envelope, raw), _defects(summary, mismatch=mismatch)
        if len(raw) > self._blob_threshold:
            self._store(partial(self._blobs.put, raw), uploads)
            return RawMessage(envelope, None, reference(envelope.sha256), priority=priority, defects=defects)
        return RawMessage(envelope, raw, priority=priority, defects=defects)

    def _in_pieces(self, summary: MessageSummary, uploads: Uploads | None) -> Iterator[RawMessage | None]:
        """Fetch one message that is never in memory as a whole: it goes through a file into the blob store."""
        singly = bool(self._suspicion.split([summary.uid], "body")[1])
        with ExitStack() as open_files:
            with self._suspicion.watching([summary.uid], "body", singly=singly):
                download = yield from self._download(summary, open_files, prefetch=not singly)
            if not download:
                return
            file, (answer, head), mismatch = download
            self._store(partial(self._keep, file, answer.sha256, open_files.pop_all()), uploads)
            envelope = self._envelope(summary, answer.size, answer.sha256, head)
            priority = self._priority_of(envelope, head)
            defects = _defects(summary, mismatch=mismatch)
            yield RawMessage(envelope, None, reference(answer.sha256), priority=priority, defects=defects)

    def _download(
        self, summary: MessageSummary, open_files: ExitStack, *, prefetch: bool
    ) -> Generator[None, None, tuple[IO[bytes], tuple[Answer, bytes], bool] | None]:
        """Write a message into a file, and into another one if its size is not the announced one.

        Returns the file to keep, what is in it and its beginning, and whether its size is another one; None when it
        cannot be taken.
        """
        limit = max_bytes(summary, self._message_max_bytes)
        file = open_files.enter_context(self._blobs.open_spool())
        first: tuple[Answer, bytes] = (Answer(0, ""), b"")
        try:
            first = yield from self._pieces.read(summary, file, limit, prefetch=prefetch)
        except PiecesTooLong as error:
            self._failures[summary.uid] = error
            return None
        except MessagesRefused:
            pass  # perhaps it is only parts that the server does not send
        size = first[0].size
        fits = size > 0 and (self._sizes.fits(summary, size) or summary.announced is None)
        if fits or self._sizes.is_trusted(size):
            return file, first, not fits
        if not size and not self._connection.list_present([summary.uid]):
            self._observe(Skipped(self._account, "vanished", 1))
            return None
        return self._download_again(summary, first, file, open_files.enter_context(self._blobs.open_spool()))

    def _download_again(
        self, summary: MessageSummary, first: tuple[Answer, bytes], file: IO[bytes], other: IO[bytes]
    ) -> tuple[IO[bytes], tuple[Answer, bytes], bool] | None:
        """Write the message into `other` with one command, and choose; returns as `_download`."""
        try:
            limit = max_bytes(summary, self._message_max_bytes)
            second = self._pieces.read_whole(summary.uid, other, limit)
        except MessagesRefused as error:
            self._failures[summary.uid] = error
            return None
        chosen, mismatch = self._sizes.choose(summary, first[0], second[0])
        if chosen is None:
            self._failures[summary.uid] = _not_whole(summary, max(first[0].size, second[0].size))
            return None
        return (other, second, mismatch) if chosen == second[0] else (file, first, mismatch)

    def _keep(self, spooled: IO[bytes], sha256: str, open_files: ExitStack) -> str:
        with open_files:
            return self._blobs.put_file(spooled, sha256)

    def _store(self, store: Callable[[], str], uploads: Uploads | None) -> None:
        if uploads is None:
            store()
        else:
            uploads.append(self._uploader.submit(store))

    def _max_bytes(self, summaries: Sequence[MessageSummary]) -> int:
        """Return the most bytes that one of them may have; their sizes are known."""
        return max_bytes(max(summaries, key=attrgetter("size")), self._message_max_bytes)

    def _envelope(self, summary: MessageSummary, size: int, sha256: str, head: bytes) -> Envelope:
        return Envelope(
            account=self._account,
            mailbox=self._mailbox.name,
            uidvalidity=self._mailbox.uidvalidity,
            uid=summary.uid,
            gm_msgid=summary.gm_msgid,
            gm_thrid=summary.gm_thrid,
            labels=summary.labels,
            flags=summary.flags,
            internaldate=_date(summary, head) if summary.defects else summary.internaldate,
            size=size,
            sha256=sha256,
        )


def _date(summary: MessageSummary, head: bytes) -> datetime:
    """Return the server's date, or the message's own where that cannot be read, or else the time of the fetch."""
    if ServerDefect.INTERNALDATE not in summary.defects:
        return summary.internaldate
    return readable_date(parse_date(head)) or summary.internaldate


def _defects(summary: MessageSummary, *, mismatch: bool) -> tuple[str, ...]:
    return (*summary.defects, ServerDefect.SIZE_MISMATCH.value) if mismatch else summary.defects


def _answer(body: bytes) -> Answer:
    return Answer(len(body), hashlib.sha256(body).hexdigest())


def _not_whole(summary: MessageSummary, size: int) -> MessagesRefused:
    announced = "a message" if summary.announced is None else f"{summary.size:,} bytes"
    sends = f"only {size:,} bytes, and not the same twice" if size else "nothing"
    return MessagesRefused(f"the IMAP server announces {announced} and sends {sends}", {})


def _too_long(summary: MessageSummary, size: int) -> MessagesRefused:
    return MessagesRefused(f"the IMAP server announces {summary.size:,} bytes and sends {size:,}", {})


def _is_large(summary: MessageSummary) -> bool:
    """Whether it is fetched in pieces: also one of unknown size."""
    return summary.size > LARGE_BYTES or (not summary.size and summary.announced is None)


def _small(summaries: Sequence[MessageSummary]) -> list[MessageSummary]:
    """Return the messages that are fetched whole."""
    return [summary for summary in summaries if not _is_large(summary)]
