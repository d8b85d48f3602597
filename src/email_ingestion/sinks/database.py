"""The sink that fills the ledger: contents up to a threshold into the database, larger ones into the blob store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from email_ingestion.blobs import Blobs, open_blobs, reference
from email_ingestion.ledger.model import Content, StoredEmail
from email_ingestion.ledger.store import Ledger, open_ledger
from email_ingestion.sinks import SinkMessage

if TYPE_CHECKING:
    from email_ingestion.settings import Settings


def open_sink(settings: Settings) -> DatabaseSink:
    """Open the sink for DATABASE_URL and BLOB_URL; raises as `open_blobs` and `open_ledger` do."""
    blobs = open_blobs(settings.blob_url)
    return DatabaseSink(open_ledger(settings.database_url), blobs, settings.blob_threshold_bytes)


class DatabaseSink:
    """See `Sink`; each message has its effect exactly once."""

    name = "database"

    def __init__(self, ledger: Ledger, blobs: Blobs, threshold: int) -> None:
        self.ledger = ledger
        self._blobs = blobs
        self._threshold = threshold  # bytes; larger contents go into the blob store

    def deliver(self, batch: Sequence[SinkMessage]) -> set[str]:
        """See `Sink`. A blob is stored before the row that refers to it: the other way round could lose it."""
        trials = [StoredEmail(parcel.email, "", tuple(_contents(parcel))) for parcel in batch if parcel.synthetic]
        if trials:
            self.ledger.record_and_roll_back(trials)
        mail = [parcel for parcel in batch if not parcel.synthetic]
        new = self.ledger.record([self._stored(parcel) for parcel in mail]) if mail else set()
        return {parcel.email.email_id for parcel in mail} - new

    def _stored(self, parcel: SinkMessage) -> StoredEmail:
        small: list[Content] = []
        for content in _contents(parcel):
            if len(content.data) <= self._threshold:
                small.append(content)
            else:
                self._blobs.put(content.data)
        raw_ref = parcel.raw_ref or reference(parcel.email.envelope.sha256)
        return StoredEmail(parcel.email, raw_ref, tuple(small), parcel.owed_to, parcel.only_sink)

    def ping(self) -> None:
        """See `Sink`."""
        self.ledger.ping()
        self._blobs.ping()

    def close(self) -> None:
        """See `Sink`."""
        self.ledger.close()


def _contents(parcel: SinkMessage) -> Iterator[Content]:
    if parcel.raw_ref is None:
        yield Content(parcel.email.envelope.sha256, parcel.raw)
    for attachment in parcel.email.attachments:
        yield Content(attachment.sha256, attachment.content)
