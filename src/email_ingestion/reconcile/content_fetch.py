"""Fetches the bytes of a known message from its server again: those that were stored are missing or damaged.

A message is looked for where it was found before, and then by its X-GM-MSGID or its Message-ID. Whatever is found
there, only bytes with the wanted hash are taken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

from email_ingestion.blobs import sha256_of
from email_ingestion.errors import ConfigurationError
from email_ingestion.ledger.model import Location
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.mailbox.imap_errors import MailboxGone, MessagesRefused
from email_ingestion.mailbox.imap_mailbox import SelectedMailbox

CHUNK_BYTES = 512 * 1024
MAX_CANDIDATES = 20  # messages with one Message-ID that are looked at: anybody may send any number of them


@dataclass(frozen=True, slots=True)
class LostMessage:
    """A message whose bytes are missing or damaged, and what helps to find it on its server."""

    email_id: str
    account: str
    raw_ref: str
    gm_msgid: int | None
    message_id: str | None
    locations: tuple[Location, ...]


class ContentFetch:
    """Looks for lost messages on one connection, in the mailboxes of these settings.

    `reserve` gets a number of bytes and tells whether they may be downloaded now.
    """

    def __init__(
        self, connection: ImapMailbox, mailbox_settings: Sequence[str], reserve: Callable[[int], bool]
    ) -> None:
        self._connection = connection
        self._mailbox_settings = mailbox_settings
        self._reserve = reserve
        self._selected: SelectedMailbox | None = None

    def fetch(self, wanted: LostMessage, spooled: IO[bytes]) -> str | None:
        """Write the wanted bytes into `spooled`; return why that was impossible, or None.

        Raises IMAPConnectionError when the connection broke.
        """
        reason = f"the server of account {wanted.account} does not have it any more"
        for uid in self._candidates(wanted):
            try:
                digest = self._download(uid, spooled)
            except MessagesRefused as error:
                reason = str(error)
                continue
            if digest is None:
                return "IMAP_BYTES_PER_DAY is used up: it is tried again later"
            if digest == sha256_of(wanted.raw_ref):
                return None
            if digest:
                reason = f"the server of account {wanted.account} has other bytes for it now"
        return reason

    def _candidates(self, wanted: LostMessage) -> Iterator[int]:
        for location in wanted.locations:
            if self._select(location.mailbox, location.uidvalidity):
                yield location.uid
        if wanted.gm_msgid is None and not wanted.message_id:
            return
        for setting in self._mailbox_settings:
            try:
                name = self._connection.find_mailbox(setting).name
            except ConfigurationError:  # it was renamed or hidden since
                continue
            if self._select(name):
                yield from self._connection.search_message(wanted.gm_msgid, wanted.message_id)[:MAX_CANDIDATES]

    def _select(self, name: str, uidvalidity: int | None = None) -> bool:
        """Open a mailbox; False when it is gone, or its UIDs are others now."""
        if self._selected is None or self._selected.name != name:
            try:
                self._selected = self._connection.examine(name)
            except MailboxGone:
                self._selected = None
                return False
        return uidvalidity in {None, self._selected.uidvalidity}

    def _download(self, uid: int, spooled: IO[bytes]) -> str | None:
        """Return the hash of the message that was written into `spooled`, "" without one; None without budget."""
        spooled.seek(0)
        spooled.truncate()
        digest, size = hashlib.sha256(), 0
        while True:
            if not self._reserve(CHUNK_BYTES):
                return None
            part = self._connection.fetch_part(uid, size, CHUNK_BYTES)
            if part is None:
                return ""
            content = part.content or b""
            whole = part.origin is None or len(content) > CHUNK_BYTES  # which some servers send for any part
            if whole:
                spooled.seek(0)
                spooled.truncate()
                digest = hashlib.sha256()
            spooled.write(content)
            digest.update(content)
            size += len(content)
            if whole or not content:  # a part that is shorter than asked for need not be the last one
                return digest.hexdigest()
