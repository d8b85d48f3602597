"""Turns outlines into messages: fetches their bodies, and lays large ones into the blob store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from typing import IO, Protocol, TypeVar

from email_ingestion.background import BackgroundThread
from email_ingestion.blobs import reference
from email_ingestion.errors import IMAPConnectionError
from email_ingestion.events import Downloaded, Observe, Skipped
from email_ingestion.mailbox import ImapMailbox, MessageSummary
from email_ingestion.mailbox.imap_errors import MessagesRefused
from email_ingestion.mailbox.imap_mailbox import SelectedMailbox
from email_ingestion.mailbox.message_summary import extract_bodies, parse_summary
from email_ingestion.producer.urgency import Urgency
from email_ingestion.records import Envelope, RawMessage

T = TypeVar("T")
Storing = list[Future[str]]  # contents on their way into the blob store

PORTION_BYTES = 1024 * 1024  # of one FETCH, or a single larger message; three portions are under way
LARGE_BYTES = 1024 * 1024  # a message above this is fetched in pieces
PIECE_BYTES = 512 * 1024  # of which two are in memory


class Blobs(Protocol):
    """Where large messages are laid before the stream names them."""

    def put(self, data: bytes) -> str:
        """Store; returns the reference."""
        ...

    def spool(self) -> IO[bytes]:
        """A file to write a content into that is too large for memory; it is gone when it is closed."""
        ...

    def keep(self, spooled: IO[bytes], sha256: str) -> str:
        """Store what was spooled; returns the reference."""
        ...


class Fetch:
    """Fetches from one opened mailbox. Made anew for each connection."""

    def __init__(
        self,
        account: str,
        connection: ImapMailbox,
        opened: SelectedMailbox,
        *,
        blobs: Blobs,
        blob_threshold: int,
        urgency: Urgency,
        observe: Observe,
    ) -> None:
        self._account = account
        self._connection = connection
        self._opened = opened
        self._blobs = blobs
        self._blob_threshold = blob_threshold
        self._urgency = urgency
        self._observe = observe
        self._refused: dict[int, Exception] = {}
        self._beside = BackgroundThread("store")

    def outlines(self, uids: Sequence[int]) -> list[MessageSummary]:
        """What the server tells of `uids`; `take_refused` tells which it refused. Raises IMAPConnectionError."""
        try:
            return self._connection.fetch_summaries(uids)
        except MessagesRefused as error:
            found = {uid: parse_summary(uid, data) for uid, data in error.found.items() if b"RFC822.SIZE" in data}
            rest = [uid for uid in uids if uid not in found]
            for outlines in self._singly(rest, error, self._connection.fetch_summaries, alone=not found):
                found |= {outline.uid: outline for outline in outlines}
            return [found[uid] for uid in sorted(found)]

    def expect(self, outlines: Sequence[MessageSummary]) -> None:
        """Have the server get ready what `messages` is asked for soon, with the same ones. Raises as it does."""
        if small := _small(outlines):
            self._connection.prefetch(small)

    def messages(self, outlines: Sequence[MessageSummary], storing: Storing | None = None) -> Iterator[RawMessage]:
        """The messages behind `outlines`, without those that vanished or were refused; raises IMAPConnectionError.

        What they refer to is in the blob store. With `storing` it may still be on its way: whoever names it to others
        first waits for what is added there, which raises SinkUnavailable when it did not arrive.
        """
        small = _small(outlines)
        bodies = self._bodies(small) if small else {}
        if bodies:
            self._observe(Downloaded(self._account, sum(map(len, bodies.values()))))
        for outline in outlines:
            if outline.size > LARGE_BYTES:
                yield from self._in_pieces(outline, storing)
                continue
            raw = bodies.pop(outline.uid, None)
            if raw is not None:
                yield self._message(outline, raw, storing)

    def _in_pieces(self, outline: MessageSummary, storing: Storing | None) -> Iterator[RawMessage]:
        """One message that is never in memory as a whole: it goes through a file into the blob store."""
        digest, size, head = hashlib.sha256(), 0, b""
        with ExitStack() as open_files:
            spooled = open_files.enter_context(self._blobs.spool())
            while True:
                for begin in range(size, min(outline.size, size + 2 * PIECE_BYTES), PIECE_BYTES):
                    self._connection.prefetch([outline.uid], (begin, PIECE_BYTES))
                try:
                    piece = self._connection.fetch_part(outline.uid, size, PIECE_BYTES)
                except MessagesRefused as error:
                    self._refused[outline.uid] = error
                    return
                if piece is None:
                    self._observe(Skipped(self._account, "vanished", 1))
                    return
                head = head or piece
                spooled.write(piece)
                digest.update(piece)
                size += len(piece)
                self._observe(Downloaded(self._account, len(piece)))
                if len(piece) < PIECE_BYTES:
                    break
            sha256 = digest.hexdigest()
            self._store(partial(self._keep, spooled, sha256, open_files.pop_all()), storing)
            envelope = self._envelope(outline, size, sha256)
            yield RawMessage(envelope, None, reference(sha256), priority=self._urgency(envelope, head))

    def _keep(self, spooled: IO[bytes], sha256: str, open_files: ExitStack) -> str:
        with open_files:
            return self._blobs.keep(spooled, sha256)

    def _store(self, store: Callable[[], str], storing: Storing | None) -> None:
        if storing is None:
            store()
        else:
            storing.append(self._beside.submit(store))

    def take_refused(self) -> dict[int, Exception]:
        """The UIDs the server lists but did not send since this was last asked, each with its reason."""
        refused, self._refused = self._refused, {}
        return refused

    def _bodies(self, uids: Sequence[int]) -> dict[int, bytes]:
        """What came at once is kept; what did not is fetched singly, for nothing may pass over mail."""
        trouble = IMAPConnectionError("the IMAP server lists a message but does not send it")
        try:
            found = self._connection.fetch_bodies(uids)
        except MessagesRefused as error:
            found, trouble = extract_bodies(error.found), error
        missing = [uid for uid in uids if uid not in found]
        for bodies in self._singly(missing, trouble, self._body, alone=not found):
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

    def _singly(
        self, uids: Sequence[int], trouble: IMAPConnectionError, ask: Callable[[Sequence[int]], T], *, alone: bool
    ) -> Iterator[T]:
        """Ask for each by itself; `alone` when no other message came.

        When all of several are refused the fault is the server's and no message's: `trouble` is raised.
        """
        refused: dict[int, Exception] = {}
        for uid in uids:
            try:
                yield ask([uid])
            except MessagesRefused as error:
                refused[uid] = error
        if alone and len(refused) > 1 and len(refused) == len(uids):
            raise trouble
        self._refused |= refused

    def _message(self, outline: MessageSummary, raw: bytes, storing: Storing | None) -> RawMessage:
        envelope = self._envelope(outline, len(raw), hashlib.sha256(raw).hexdigest())
        priority = self._urgency(envelope, raw)
        if len(raw) > self._blob_threshold:
            self._store(partial(self._blobs.put, raw), storing)
            return RawMessage(envelope, None, reference(envelope.sha256), priority=priority)
        return RawMessage(envelope, raw, priority=priority)

    def _envelope(self, outline: MessageSummary, size: int, sha256: str) -> Envelope:
        return Envelope(
            account=self._account,
            mailbox=self._opened.name,
            uidvalidity=self._opened.uidvalidity,
            uid=outline.uid,
            gm_msgid=outline.gm_msgid,
            gm_thrid=outline.gm_thrid,
            labels=outline.labels,
            flags=outline.flags,
            internaldate=outline.internaldate,
            size=size,
            sha256=sha256,
        )


def _small(outlines: Sequence[MessageSummary]) -> list[int]:
    """The UIDs of those that are fetched whole."""
    return [outline.uid for outline in outlines if outline.size <= LARGE_BYTES]
