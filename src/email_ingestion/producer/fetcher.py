"""Fetches messages: their summaries, then their bodies, of which the large ones go into the blob store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from typing import IO, TypeVar

from email_ingestion.background import BackgroundThread
from email_ingestion.blobs import BlobStore, reference
from email_ingestion.errors import IMAPConnectionError
from email_ingestion.events import Downloaded, Observe, Skipped
from email_ingestion.mailbox import ImapMailbox, MessageSummary
from email_ingestion.mailbox.imap_errors import MessagesRefused
from email_ingestion.mailbox.imap_mailbox import SelectedMailbox
from email_ingestion.mailbox.message_summary import extract_bodies, parse_summary
from email_ingestion.producer.priority import PriorityOf
from email_ingestion.records import Envelope, RawMessage

T = TypeVar("T")
Uploads = list[Future[str]]  # contents on their way into the blob store

BATCH_BYTES = 1024 * 1024  # of one FETCH, or a single larger message; three batches are in flight
LARGE_BYTES = 1024 * 1024  # a message above this is fetched in chunks
CHUNK_BYTES = 512 * 1024  # of which two are in memory


class MessageFetcher:
    """Fetches from one mailbox; made anew for each connection."""

    def __init__(
        self,
        account: str,
        connection: ImapMailbox,
        mailbox: SelectedMailbox,
        *,
        blobs: BlobStore,
        blob_threshold: int,
        priority_of: PriorityOf,
        observe: Observe,
    ) -> None:
        self._account = account
        self._connection = connection
        self._mailbox = mailbox
        self._blobs = blobs
        self._blob_threshold = blob_threshold
        self._priority_of = priority_of
        self._observe = observe
        self._failures: dict[int, Exception] = {}
        self._uploader = BackgroundThread("store")

    def summaries(self, uids: Sequence[int]) -> list[MessageSummary]:
        """Fetch the summaries of `uids`; refused ones are in `pop_failures`. Raises IMAPConnectionError."""
        try:
            return self._connection.fetch_summaries(uids)
        except MessagesRefused as error:
            found = {uid: parse_summary(uid, data) for uid, data in error.found.items() if b"RFC822.SIZE" in data}
            rest = [uid for uid in uids if uid not in found]
            for summaries in self._one_by_one(rest, error, self._connection.fetch_summaries, no_other_came=not found):
                found |= {summary.uid: summary for summary in summaries}
            return [found[uid] for uid in sorted(found)]

    def prefetch(self, summaries: Sequence[MessageSummary]) -> None:
        """Have the server prepare what `messages` fetches soon, called with the same summaries. Raises as it does."""
        if small := _small(summaries):
            self._connection.prefetch(small)

    def messages(self, summaries: Sequence[MessageSummary], uploads: Uploads | None = None) -> Iterator[RawMessage]:
        """Fetch messages, without those that vanished or were refused; raises IMAPConnectionError.

        Large contents are in the blob store, or with `uploads` on their way: before a message is named to others, wait
        for the futures that are added there, which raise SinkUnavailable when a content did not arrive.
        """
        small = _small(summaries)
        bodies = self._bodies(small) if small else {}
        if bodies:
            self._observe(Downloaded(self._account, sum(map(len, bodies.values()))))
        for summary in summaries:
            if summary.size > LARGE_BYTES:
                yield from self._in_chunks(summary, uploads)
                continue
            raw = bodies.pop(summary.uid, None)
            if raw is not None:
                yield self._message(summary, raw, uploads)

    def pop_failures(self) -> dict[int, Exception]:
        """Return the UIDs that the server listed but did not send since the last call, each with its error."""
        failures, self._failures = self._failures, {}
        return failures

    def _bodies(self, uids: Sequence[int]) -> dict[int, bytes]:
        """Fetch bodies with one command, and one by one what did not come: no mail may be passed over."""
        error_of_all = IMAPConnectionError("the IMAP server lists a message but does not send it")
        try:
            found = self._connection.fetch_bodies(uids)
        except MessagesRefused as error:
            found, error_of_all = extract_bodies(error.found), error
        missing = [uid for uid in uids if uid not in found]
        for bodies in self._one_by_one(missing, error_of_all, self._body, no_other_came=not found):
            if bodies:
                found |= bodies
            else:
                self._observe(Skipped(self._account, "vanished", 1))
        return found

    def _body(self, uids: Sequence[int]) -> dict[int, bytes]:
        (uid,) = uids
        if not self._connection.list_uids(uid, uid):
            return {}
        bodies = self._connection.fetch_bodies(uids)
        if uid not in bodies:
            raise MessagesRefused(f"the IMAP server lists UID {uid} but does not send it", {})
        return bodies

    def _one_by_one(
        self,
        uids: Sequence[int],
        error_of_all: IMAPConnectionError,
        fetch: Callable[[Sequence[int]], T],
        *,
        no_other_came: bool,
    ) -> Iterator[T]:
        """Fetch every UID by itself, and keep the refused ones in `_failures`.

        When all of several are refused and no other message came, the fault is the server's and no message's:
        `error_of_all` is raised.
        """
        refused: dict[int, Exception] = {}
        for uid in uids:
            try:
                yield fetch([uid])
            except MessagesRefused as error:
                refused[uid] = error
        if no_other_came and len(refused) > 1 and len(refused) == len(uids):
            raise error_of_all
        self._failures |= refused

    def _message(self, summary: MessageSummary, raw: bytes, uploads: Uploads | None) -> RawMessage:
        envelope = self._envelope(summary, len(raw), hashlib.sha256(raw).hexdigest())
        priority = self._priority_of(envelope, raw)
        if len(raw) > self._blob_threshold:
            self._store(partial(self._blobs.put, raw), uploads)
            return RawMessage(envelope, None, reference(envelope.sha256), priority=priority)
        return RawMessage(envelope, raw, priority=priority)

    def _in_chunks(self, summary: MessageSummary, uploads: Uploads | None) -> Iterator[RawMessage]:
        """Fetch one message that is never in memory as a whole: it goes through a file into the blob store."""
        digest, size, head = hashlib.sha256(), 0, b""
        with ExitStack() as open_files:
            spooled = open_files.enter_context(self._blobs.open_spool())
            while True:
                for start in range(size, min(summary.size, size + 2 * CHUNK_BYTES), CHUNK_BYTES):
                    self._connection.prefetch([summary.uid], (start, CHUNK_BYTES))
                try:
                    chunk = self._connection.fetch_part(summary.uid, size, CHUNK_BYTES)
                except MessagesRefused as error:
                    self._failures[summary.uid] = error
                    return
                if chunk is None:
                    self._observe(Skipped(self._account, "vanished", 1))
                    return
                head = head or chunk
                spooled.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                self._observe(Downloaded(self._account, len(chunk)))
                if len(chunk) < CHUNK_BYTES:
                    break
            sha256 = digest.hexdigest()
            self._store(partial(self._keep, spooled, sha256, open_files.pop_all()), uploads)
            envelope = self._envelope(summary, size, sha256)
            yield RawMessage(envelope, None, reference(sha256), priority=self._priority_of(envelope, head))

    def _keep(self, spooled: IO[bytes], sha256: str, open_files: ExitStack) -> str:
        with open_files:
            return self._blobs.put_file(spooled, sha256)

    def _store(self, store: Callable[[], str], uploads: Uploads | None) -> None:
        if uploads is None:
            store()
        else:
            uploads.append(self._uploader.submit(store))

    def _envelope(self, summary: MessageSummary, size: int, sha256: str) -> Envelope:
        return Envelope(
            account=self._account,
            mailbox=self._mailbox.name,
            uidvalidity=self._mailbox.uidvalidity,
            uid=summary.uid,
            gm_msgid=summary.gm_msgid,
            gm_thrid=summary.gm_thrid,
            labels=summary.labels,
            flags=summary.flags,
            internaldate=summary.internaldate,
            size=size,
            sha256=sha256,
        )


def _small(summaries: Sequence[MessageSummary]) -> list[int]:
    """Return the UIDs of the messages that are fetched whole."""
    return [summary.uid for summary in summaries if summary.size <= LARGE_BYTES]
