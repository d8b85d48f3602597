"""Imports an mbox file through the same script as mail from a server: batches, a cursor, each identity once.

The cursor is the byte offset behind what is in the stream or left out, so an import that was interrupted goes on there,
and two imports of one file at a time cannot double anything. The place of a message is its offset.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from email_ingestion.blobs import BlobStore
from email_ingestion.errors import OperationFailed
from email_ingestion.mailbox import MessageSummary
from email_ingestion.producer.fetcher import BATCH_BYTES
from email_ingestion.producer.mbox import MboxMessage, read_mbox
from email_ingestion.producer.selection import FetchFilter
from email_ingestion.records import Cursor, Envelope, RawMessage
from email_ingestion.stream import Appender

BATCH_MESSAGES = 500
HEAD_BYTES = 65536  # which tell one file from another, with its size


@dataclass(slots=True)
class ImportReport:
    """Counts what became of the messages of the file; the offsets are in bytes."""

    account: str
    size: int  # bytes of the file
    start_offset: int = 0
    end_offset: int = 0
    messages: int = 0
    queued: int = 0
    excluded: Counter[str] = field(default_factory=Counter)  # by reason

    def as_dict(self) -> dict[str, Any]:
        """Return the report as `--json` prints it."""
        reasons = ("known", "excluded_label", "before_start", "too_large")
        return {
            "account": self.account,
            "complete": self.end_offset >= self.size,
            "bytes": self.size,
            "begun_at": self.start_offset,
            "upto": self.end_offset,
            "messages": self.messages,
            "queued": self.queued,
            **{reason: self.excluded[reason] for reason in reasons},
        }


class MboxImport:
    """Imports one file for one account.

    `known_ids` returns the identities of messages that need not come; `wait_for_capacity` waits for room in the stream.
    """

    def __init__(
        self,
        account: str,
        path: Path,
        *,
        appender: Appender,
        blobs: BlobStore,
        blob_threshold: int,
        fetch_filter: FetchFilter,
        known_ids: Callable[[Sequence[RawMessage]], Collection[str]],
        wait_for_capacity: Callable[[], None],
    ) -> None:
        """Raises OperationFailed when the file cannot be read."""
        self._account = account
        self._path = path
        self._appender = appender
        self._blobs = blobs
        self._blob_threshold = blob_threshold
        self._fetch_filter = fetch_filter
        self._known_ids = known_ids
        self._wait_for_capacity = wait_for_capacity
        self._modified, size, self._mailbox, self._uidvalidity = _identify(path)
        self.report = ImportReport(account, size)

    def steps(self) -> Iterator[None]:
        """Import from where the last import of this file ended, pausing after each batch.

        Raises OperationFailed, SinkUnavailable and the errors of the stream; what was appended stays.
        """
        cursor = self._appender.restart_cursor(self._account, self._mailbox, Cursor(self._uidvalidity, 0))
        self.report.start_offset = self.report.end_offset = cursor.uid
        try:
            with self._path.open("rb") as file:
                for batch in _batches(read_mbox(file, cursor.uid)):
                    cursor = self._append(cursor, batch)
                    yield
        except OSError as error:
            raise OperationFailed(f"cannot read {self._path}: {error.strerror}") from error
        if not cursor.uid:
            raise OperationFailed(f"{self._path} is no mbox file: it does not begin with a line `From `")
        self.report.end_offset = max(self.report.end_offset, cursor.uid)

    def _append(self, cursor: Cursor, batch: Sequence[MboxMessage]) -> Cursor:
        self._wait_for_capacity()
        messages = self._select(batch)
        known = self._known_ids(messages)
        new = [message for message in messages if message.envelope.email_id not in known]
        self.report.excluded["known"] += len(messages) - len(new)
        stored = [self._store_large(message) for message in new]
        added, cursor = self._appender.append(self._account, self._mailbox, cursor, batch[-1].end, stored)
        self.report.messages += len(batch)
        self.report.queued += added
        self.report.end_offset = cursor.uid
        return cursor

    def _select(self, batch: Sequence[MboxMessage]) -> list[RawMessage]:
        """Return the messages of the batch that no rule leaves out, each identity once."""
        selected: dict[str, RawMessage] = {}
        for found in batch:
            if found.raw is None:
                self.report.excluded["too_large"] += 1
                continue
            message = self._raw_message(found, found.raw)
            reason = self._fetch_filter.exclusion_reason(_summary(message.envelope), ())
            if message.envelope.email_id in selected:
                reason = "known"
            if reason:
                self.report.excluded[reason] += 1
            else:
                selected[message.envelope.email_id] = message
        return list(selected.values())

    def _raw_message(self, found: MboxMessage, raw: bytes) -> RawMessage:
        envelope = Envelope(
            account=self._account,
            mailbox=self._mailbox,
            uidvalidity=self._uidvalidity,
            uid=found.start + 1,
            gm_msgid=found.gm_msgid,
            gm_thrid=found.gm_thrid,
            labels=found.labels,
            flags=found.flags,
            internaldate=found.internaldate or self._modified,
            size=len(raw),
            sha256=hashlib.sha256(raw).hexdigest(),
        )
        return RawMessage(envelope, raw, history=True)

    def _store_large(self, message: RawMessage) -> RawMessage:
        if message.raw is None or len(message.raw) <= self._blob_threshold:
            return message
        return replace(message, raw=None, raw_ref=self._blobs.put(message.raw))


def _identify(path: Path) -> tuple[datetime, int, str, int]:
    """Return the modification time, the size, and a mailbox name and UIDVALIDITY made from the content.

    The file's own name is not used, because it may say much about its owner.
    """
    try:
        facts = path.stat()
        with path.open("rb") as file:
            digest = hashlib.sha256(b"%d " % facts.st_size + file.read(HEAD_BYTES)).digest()
    except OSError as error:
        raise OperationFailed(f"cannot read {path}: {error.strerror}") from error
    modified = datetime.fromtimestamp(facts.st_mtime).astimezone()
    return modified, facts.st_size, f"import:{digest.hex()[:12]}", int.from_bytes(digest[-4:], "big") or 1


def _batches(messages: Iterator[MboxMessage]) -> Iterator[list[MboxMessage]]:
    """Cut into batches of at most `BATCH_BYTES`; a larger message is one by itself."""
    batch: list[MboxMessage] = []
    size = 0
    for message in messages:
        length = message.end - message.start
        if batch and (size + length > BATCH_BYTES or len(batch) >= BATCH_MESSAGES):
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += length
    if batch:
        yield batch


def _summary(envelope: Envelope) -> MessageSummary:
    return MessageSummary(
        uid=envelope.uid,
        size=envelope.size,
        internaldate=envelope.internaldate,
        flags=envelope.flags,
        labels=envelope.labels,
        gm_msgid=envelope.gm_msgid,
        gm_thrid=envelope.gm_thrid,
    )
