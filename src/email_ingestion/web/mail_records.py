"""The records of delivered messages, made anew from their raw bytes: what a sink got, `email.v1`."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from email_ingestion.blobs import sha256_of
from email_ingestion.errors import ContentLost, ParserDied, PermanentError
from email_ingestion.ledger.mail_pages import PageEntry
from email_ingestion.ledger.store import content_of
from email_ingestion.parsing.isolated import IsolatedParser
from email_ingestion.records import (
    NORMAL_PRIORITY,
    Attachment,
    AuthenticationResults,
    Email,
    Envelope,
    ServerDefect,
)
from email_ingestion.web.api_errors import WebError
from email_ingestion.web.ledger_access import LedgerAccess

UNAVAILABLE = "raw:unavailable"  # a defect of an answer, never of what a sink gets
NO_BYTES = (ContentLost, PermanentError)
PAGE_BYTES = 16 * 1024 * 1024  # of raw messages, that the records of one page are made from
PAGE_SECONDS = 0.5
BATCH = 20  # messages parsed between two looks at the clock


class MailRecords:
    """Makes records in a process of its own, for mail is its sender's. Threads may share it; they take turns."""

    def __init__(self, access: LedgerAccess, timeout: float) -> None:
        """`timeout` is how many seconds a message may take."""
        self._access = access
        self._parser = IsolatedParser(timeout)
        self._lock = threading.Lock()

    def raw(self, entry: PageEntry) -> bytes:
        """Return the message as its server has it. Raises ContentLost when it is missing or damaged."""
        return content_of(entry.facts.raw_ref, self._access.ledger, self._access.blobs)

    def record(self, entry: PageEntry) -> Email:
        """Return the record of one message."""
        return self._parse([entry])[0]

    def page(self, entries: Sequence[PageEntry]) -> list[Email]:
        """Return the records of the first of these messages, of one at least.

        Not of all where they are large or take long: the next page begins behind the last.
        """
        found: list[Email] = []
        bytes_left, until = PAGE_BYTES, time.monotonic() + PAGE_SECONDS
        position = 0
        while position < len(entries) and (not found or time.monotonic() < until):
            batch: list[PageEntry] = []
            for entry in entries[position : position + BATCH]:
                bytes_left -= entry.facts.envelope.size
                if bytes_left < 0 and (batch or found):
                    break
                batch.append(entry)
            if not batch:
                break
            found += self._parse(batch)
            position += len(batch)
        return found

    def close(self) -> None:
        """End the parser's process."""
        with suppress(OSError):
            self._parser.interrupt()
        self._parser.close()

    def _parse(self, entries: Sequence[PageEntry]) -> list[Email]:
        """Return the records; of a message whose bytes are lost, or end the parser, what the database has of it."""
        batch: list[tuple[Envelope, bytes]] = []
        for entry in entries:
            with suppress(*NO_BYTES):
                batch.append((entry.facts.envelope, self.raw(entry)))
        with self._lock:
            try:
                parsed = self._parser.parse(list(batch))
            except ParserDied:
                parsed = [email for one in batch for email in self._parse_alone(one)]
        found = {email.email_id: email for email in parsed}
        return [
            _completed(found[entry.email_id], entry) if entry.email_id in found else self._stored_record(entry)
            for entry in entries
        ]

    def _parse_alone(self, one: tuple[Envelope, bytes]) -> list[Email]:
        try:
            return self._parser.parse([one])
        except ParserDied:
            return []

    def _stored_record(self, entry: PageEntry) -> Email:
        """Return the record that the database has: what only the bytes tell is missing, and a defect says so."""
        view = self._access.ledger.views.message(entry.email_id)
        if view is None:
            raise WebError(404, f"{entry.email_id} was erased meanwhile")
        verdicts = dict(view.verdicts)
        parts = tuple(
            Attachment(each.position, each.filename, each.content_type, each.size, sha256_of(each.content_ref), b"")
            for each in view.attachments
        )
        return Email(
            envelope=entry.facts.envelope,
            message_id=view.message_id,
            subject=view.subject,
            from_=view.sender if view.sender.addr or view.sender.name else None,
            to=view.to,
            cc=view.cc,
            bcc=(),
            reply_to=(),
            date=view.date,
            in_reply_to=None,
            references=(),
            text=view.text,
            html=view.html,
            headers=view.headers,
            attachments=parts,
            defects=(*view.defects, UNAVAILABLE),
            auto_reply=view.is_auto_reply,
            verdicts=AuthenticationResults(*map(verdicts.get, ("spf", "dkim", "dmarc"))) if verdicts else None,
            priority=NORMAL_PRIORITY if view.priority is None else view.priority,
            tags=view.tags,
        )


def _completed(email: Email, entry: PageEntry) -> Email:
    """Add what the raw bytes do not tell: tags and priority of its route, and the defects of what the server said."""
    of_server = tuple(each for each in entry.defects if each in set(ServerDefect))
    email = replace(email, defects=(*of_server, *email.defects))
    if entry.facts.priority is None:
        return email
    return replace(email, tags=entry.facts.tags, priority=entry.facts.priority)
