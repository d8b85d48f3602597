"""The sink that fills the ledger: small contents go into the database, larger ones into the blob store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from email_ingestion.blobs import BlobStore, open_blobs, reference
from email_ingestion.errors import TransientError
from email_ingestion.ledger.model import Content, LedgerWrite, StoredEmail
from email_ingestion.ledger.store import Ledger, open_ledger
from email_ingestion.records import SinkMessage

if TYPE_CHECKING:
    from email_ingestion.settings import Settings


def open_sink(settings: Settings) -> DatabaseSink:
    """Open the sink for DATABASE_URL and BLOB_URL. Raises the errors of `open_blobs` and `open_ledger`."""
    blobs = open_blobs(settings.blob_url)
    return DatabaseSink(open_ledger(settings.database_url), blobs, settings.blob_threshold_bytes)


class DatabaseSink:
    """Records each message exactly once. The worker passes `LedgerWrite`s; any other `SinkMessage` is just recorded.

    `on_loss` is called with the message that it recorded last when the database has lost it.
    """

    name = "database"

    def __init__(self, ledger: Ledger, blobs: BlobStore, threshold: int) -> None:
        self.ledger = ledger
        self.on_loss: Callable[[str], None] = lambda _: None
        self._newest: str | None = None  # that we have recorded
        self._connections: int | None = 0  # when it was last certain that the database has it
        self._lock = threading.Lock()
        self._blobs = blobs
        self._threshold = threshold  # bytes; larger contents go into the blob store

    def deliver(self, batch: Sequence[SinkMessage]) -> set[str]:
        """Record the batch in one transaction; return the identities that were recorded before."""
        writes = [one if isinstance(one, LedgerWrite) else LedgerWrite(one.email, one.raw) for one in batch]
        synthetic = [StoredEmail(write.email, "", tuple(_contents(write))) for write in writes if write.synthetic]
        if synthetic:
            self.ledger.record_and_roll_back(synthetic)
        mail = [write for write in writes if not write.synthetic]
        new = self.ledger.record([self._store_contents(write) for write in mail]) if mail else set()
        connections = self.ledger.connections
        if (connections is not None and connections == self._connections) or self._has_newest():
            recorded = (write.email.email_id for write in reversed(mail) if write.email.email_id in new)
            self._newest = next(recorded, self._newest)
        return {write.email.email_id for write in mail} - new

    def _store_contents(self, write: LedgerWrite) -> StoredEmail:
        """Store large contents before the row that refers to them is written: the other order could lose them."""
        small: list[Content] = []
        for content in _contents(write):
            if len(content.data) <= self._threshold:
                small.append(content)
            else:
                self._blobs.put(content.data)
        raw_ref = write.raw_ref or reference(write.email.envelope.sha256)
        return StoredEmail(
            write.email, raw_ref, tuple(small), write.owed_to, write.only_sink, retention_days=write.retention_days
        )

    def ping(self) -> None:
        """Check that the database and the blob store accept writes. Raises SinkUnavailable."""
        self.ledger.ping()
        self._has_newest()
        self._blobs.ping()

    def _has_newest(self) -> bool:
        """Report a database that has lost what we recorded last: a failover, a backup, a file that was removed.

        How far the database has come does not show it any more once others have recorded more. What an operator
        erased is reported as well, and costs a comparison. Returns False when the report failed: it is made again.
        """
        with self._lock:
            connections, newest = self.ledger.connections, self._newest
            if newest and not self.ledger.known_ids([newest]):
                try:
                    self.on_loss(newest)
                except TransientError:
                    return False
                self._newest = None
            self._connections = connections
            return True

    def close(self) -> None:
        """Close the database."""
        self.ledger.close()


def _contents(write: LedgerWrite) -> Iterator[Content]:
    if write.raw_ref is None:
        yield Content(write.email.envelope.sha256, write.raw)
    for attachment in write.email.attachments:
        yield Content(attachment.sha256, attachment.content)
