"""The producer's loop: from a mailbox into the stream, one watcher for each account."""

from email_ingestion.producer.fetch import Fetch
from email_ingestion.producer.sync import Sync
from email_ingestion.producer.watch import Watcher

__all__ = ["Fetch", "Sync", "Watcher"]
