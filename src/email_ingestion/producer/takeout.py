"""Imports an mbox file through the same script as mail from a server: batches, a cursor, each identity once.

The cursor is the byte offset behind what is in the stream or left out, so an import that was interrupted goes on there,
and two imports of one file at a time cannot double anything. The place of a message is its offset.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from email_ingestion.errors import OperationFailed
from email_ingestion.mailbox import MessageSummary
from email_ingestion.producer.choice import Rules
from email_ingestion.producer.fetch import PORTION_BYTES, Blobs
from email_ingestion.producer.mbox import Letter, letters
from email_ingestion.records import Cursor, Envelope, RawMessage
from email_ingestion.stream import Appender

PORTION_MOST = 500  # messages
HEAD = 65536  # bytes that tell one file from another, with its size


@dataclass(slots=True)
class Report:
    """What became of the messages of the file; `begun_at` and `upto` are byte offsets."""

    account: str
    size: int  # bytes of the file
    begun_at: int = 0
    upto: int = 0
    messages: int = 0
    queued: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        reasons = ("known", "excluded_label", "before_start", "too_large")
        return {
            "account": self.account,
            "complete": self.upto >= self.size,
            "bytes": self.size,
            "begun_at": self.begun_at,
            "upto": self.upto,
            "messages": self.messages,
            "queued": self.queued,
            **{reason: self.left_out[reason] for reason in reasons},
        }


class Import:
    """One file for one account.

    `known` gives the identities of messages that need not come; `room` waits until the stream has some.
    """

    def __init__(
        self,
        account: str,
        path: Path,
        *,
        intake: Appender,
        blobs: Blobs,
        blob_threshold: int,
        rules: Rules,
        known: Callable[[Sequence[RawMessage]], Collection[str]],
        room: Callable[[], None],
    ) -> None:
        """Raises OperationFailed when the file cannot be read."""
        self._account = account
        self._path = path
        self._intake = intake
        self._blobs = blobs
        self._blob_threshold = blob_threshold
        self._rules = rules
        self._known = known
        self._room = room
        self._modified, size, self._mailbox, self._edition = _identify(path)
        self.report = Report(account, size)

    def steps(self) -> Iterator[None]:
        """Import from where the last import of this file ended, pausing after each batch.

        Raises OperationFailed, SinkUnavailable and what the stream raises; what was appended stays.
        """
        cursor = self._intake.restart_cursor(self._account, self._mailbox, Cursor(self._edition, 0))
        self.report.begun_at = self.report.upto = cursor.uid
        try:
            with self._path.open("rb") as file:
                for batch in _batches(letters(file, cursor.uid)):
                    cursor = self._take(cursor, batch)
                    yield
        except OSError as error:
            raise OperationFailed(f"cannot read {self._path}: {error.strerror}") from error
        if not cursor.uid:
            raise OperationFailed(f"{self._path} is no mbox file: it does not begin with a line `From `")
        self.report.upto = max(self.report.upto, cursor.uid)

    def _take(self, cursor: Cursor, batch: Sequence[Letter]) -> Cursor:
        self._room()
        messages = self._wanted(batch)
        known = self._known(messages)
        new = [message for message in messages if message.envelope.email_id not in known]
        self.report.left_out["known"] += len(messages) - len(new)
        kept = [self._laid_down(message) for message in new]
        added, cursor = self._intake.append(self._account, self._mailbox, cursor, batch[-1].end, kept)
        self.report.messages += len(batch)
        self.report.queued += added
        self.report.upto = cursor.uid
        return cursor

    def _wanted(self, batch: Sequence[Letter]) -> list[RawMessage]:
        """Those of the batch that no rule leaves out, each identity once."""
        wanted: dict[str, RawMessage] = {}
        for letter in batch:
            if letter.raw is None:
                self.report.left_out["too_large"] += 1
                continue
            message = self._message(letter, letter.raw)
            reason = self._rules.reason_against(_outline(message.envelope), ())
            if message.envelope.email_id in wanted:
                reason = "known"
            if reason:
                self.report.left_out[reason] += 1
            else:
                wanted[message.envelope.email_id] = message
        return list(wanted.values())

    def _message(self, letter: Letter, raw: bytes) -> RawMessage:
        envelope = Envelope(
            account=self._account,
            mailbox=self._mailbox,
            uidvalidity=self._edition,
            uid=letter.start + 1,
            gm_msgid=letter.gm_msgid,
            gm_thrid=letter.gm_thrid,
            labels=letter.labels,
            flags=letter.flags,
            internaldate=letter.internaldate or self._modified,
            size=len(raw),
            sha256=hashlib.sha256(raw).hexdigest(),
        )
        return RawMessage(envelope, raw)

    def _laid_down(self, message: RawMessage) -> RawMessage:
        if message.raw is None or len(message.raw) <= self._blob_threshold:
            return message
        return RawMessage(message.envelope, None, self._blobs.put(message.raw))


def _identify(path: Path) -> tuple[datetime, int, str, int]:
    """When the file was written, its size, and what it is called as a mailbox: never its name, which may say much."""
    try:
        facts = path.stat()
        with path.open("rb") as file:
            digest = hashlib.sha256(b"%d " % facts.st_size + file.read(HEAD)).digest()
    except OSError as error:
        raise OperationFailed(f"cannot read {path}: {error.strerror}") from error
    modified = datetime.fromtimestamp(facts.st_mtime).astimezone()
    return modified, facts.st_size, f"import:{digest.hex()[:12]}", int.from_bytes(digest[-4:], "big") or 1


def _batches(found: Iterator[Letter]) -> Iterator[list[Letter]]:
    """Batches of bounded bytes; a larger message is one by itself."""
    batch: list[Letter] = []
    size = 0
    for letter in found:
        length = letter.end - letter.start
        if batch and (size + length > PORTION_BYTES or len(batch) >= PORTION_MOST):
            yield batch
            batch, size = [], 0
        batch.append(letter)
        size += length
    if batch:
        yield batch


def _outline(envelope: Envelope) -> MessageSummary:
    return MessageSummary(
        uid=envelope.uid,
        size=envelope.size,
        internaldate=envelope.internaldate,
        flags=envelope.flags,
        labels=envelope.labels,
        gm_msgid=envelope.gm_msgid,
        gm_thrid=envelope.gm_thrid,
    )
