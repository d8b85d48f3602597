"""The producer's loop: from a mailbox into the stream, one watcher for each account."""

from email_ingestion.producer.budget import Budget
from email_ingestion.producer.connect import Connector
from email_ingestion.producer.fetch import Fetch
from email_ingestion.producer.history import History
from email_ingestion.producer.keeper import Keeper
from email_ingestion.producer.picker import Picker
from email_ingestion.producer.reaction import Patience
from email_ingestion.producer.sync import Sync
from email_ingestion.producer.watch import Watcher

__all__ = ["Budget", "Connector", "Fetch", "History", "Keeper", "Patience", "Picker", "Sync", "Watcher"]
