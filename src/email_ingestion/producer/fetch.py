"""Turns outlines into messages: fetches their bodies, and lays large ones into the blob store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Protocol

from email_ingestion.email import Envelope, Message
from email_ingestion.errors import IMAPConnectionError
from email_ingestion.events import Downloaded, Observe, Skipped
from email_ingestion.mailbox import ImapMailbox, Outline
from email_ingestion.mailbox.imap import Opened

PORTION_BYTES = 4 * 1024 * 1024


class Blobs(Protocol):
    """Where large messages are laid before the stream names them."""

    def put(self, data: bytes) -> str:
        """Store; returns the reference."""
        ...


class Fetch:
    """Fetches from one opened mailbox. Made anew for each connection."""

    def __init__(
        self,
        account: str,
        connection: ImapMailbox,
        opened: Opened,
        *,
        blobs: Blobs,
        blob_threshold: int,
        observe: Observe,
    ) -> None:
        self._account = account
        self._connection = connection
        self._opened = opened
        self._blobs = blobs
        self._blob_threshold = blob_threshold
        self._observe = observe

    def messages(self, outlines: Sequence[Outline]) -> Iterator[Message]:
        """The messages behind `outlines`, without those that vanished; raises IMAPConnectionError."""
        bodies = self._connection.bodies([outline.uid for outline in outlines]) if outlines else {}
        missing = [outline.uid for outline in outlines if outline.uid not in bodies]
        if missing:
            bodies |= self._again(missing)
        for outline in outlines:
            raw = bodies.pop(outline.uid, None)
            if raw is not None:
                self._observe(Downloaded(self._account, len(raw)))
                yield self._message(outline, raw)

    def _again(self, missing: Sequence[int]) -> dict[int, bytes]:
        """Bodies the server left out: fetched singly while they are listed, for nothing may pass over mail."""
        found: dict[int, bytes] = {}
        for uid in missing:
            if not self._connection.uids(uid, uid):
                self._observe(Skipped(self._account, "vanished", 1))
                continue
            found |= self._connection.bodies([uid])
            if uid not in found:
                raise IMAPConnectionError(f"the IMAP server lists UID {uid} but does not send it")
        return found

    def _message(self, outline: Outline, raw: bytes) -> Message:
        envelope = Envelope(
            account=self._account,
            mailbox=self._opened.name,
            uidvalidity=self._opened.uidvalidity,
            uid=outline.uid,
            gm_msgid=outline.gm_msgid,
            gm_thrid=outline.gm_thrid,
            labels=outline.labels,
            flags=outline.flags,
            internaldate=outline.internaldate,
            size=len(raw),
            sha256=hashlib.sha256(raw).hexdigest(),
        )
        if len(raw) > self._blob_threshold:
            return Message(envelope, None, self._blobs.put(raw))
        return Message(envelope, raw)
