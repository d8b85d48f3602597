"""The producer: takes mail from a mailbox into the stream, one watcher for each account. `watch` is where to begin."""

from email_ingestion.producer.account_backoff import AccountBackoff
from email_ingestion.producer.backpressure import DownloadBudget, StreamCapacity
from email_ingestion.producer.connector import Connector
from email_ingestion.producer.fetcher import MessageFetcher
from email_ingestion.producer.known_mail import InFlight, KnownMail
from email_ingestion.producer.selection import FetchFilter, MessageSelector
from email_ingestion.producer.supervisor import WatcherSupervisor
from email_ingestion.producer.sync import HistorySync, NewMailSync
from email_ingestion.producer.watch import Intervals, MailboxTasks, Watcher

__all__ = [
    "AccountBackoff",
    "Connector",
    "DownloadBudget",
    "FetchFilter",
    "HistorySync",
    "InFlight",
    "Intervals",
    "KnownMail",
    "MailboxTasks",
    "MessageFetcher",
    "MessageSelector",
    "NewMailSync",
    "StreamCapacity",
    "Watcher",
    "WatcherSupervisor",
]
