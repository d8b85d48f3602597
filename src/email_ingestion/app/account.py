"""One account and all that its mail needs on its way into the stream, for a watcher or for a command."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from email_ingestion.blobs import BlobStore
from email_ingestion.events import Observe
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.mailbox.imap_mailbox import SelectedMailbox
from email_ingestion.overrides import OperatorOverrides
from email_ingestion.producer import (
    DownloadBudget,
    FetchFilter,
    HistorySync,
    InFlight,
    KnownMail,
    MailboxTasks,
    MessageFetcher,
    MessageSelector,
    NewMailSync,
    StreamCapacity,
)
from email_ingestion.producer.backfill import Backfill
from email_ingestion.producer.label_sync import LabelSync
from email_ingestion.producer.pipeline import AppendPipeline
from email_ingestion.producer.priority import priority_by_header
from email_ingestion.producer.quarantine_retry import QuarantineRetry
from email_ingestion.reconcile import Reconciler
from email_ingestion.routing import Router
from email_ingestion.settings import Account, Settings, start_of
from email_ingestion.stream import Appender, DownloadQuota, EntryScanner, Quarantine, RedisLink

if TYPE_CHECKING:
    from email_ingestion.ledger.store import Ledger


class LedgerOnDemand:
    """The ledger, opened when it is first asked for: mail is fetched while the database is away."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._ledger: Ledger | None = None

    def __call__(self) -> Ledger:
        """The ledger; raises SinkUnavailable or ConfigurationError."""
        from email_ingestion.ledger.store import open_ledger  # noqa: PLC0415 - SQLAlchemy: 0.15 s, 13 MB

        with self._lock:
            self._ledger = self._ledger or open_ledger(self._url)
            return self._ledger

    def close(self) -> None:
        """Give the connections back, if there are any."""
        with self._lock:
            if self._ledger:
                self._ledger.close()


@dataclass(frozen=True, slots=True)
class Source:
    """One account, and what its mail needs apart from a connection: makes the parts of the producer for it."""

    account: Account
    settings: Settings
    link: RedisLink
    intake: Appender  # one for each thread
    ledger: Callable[[], Ledger]
    blobs: BlobStore
    observe: Observe = lambda _: None  # what a command counts says it all
    holder: str = ""  # as whom it writes, see `stream.leases`; a command writes as nobody in particular
    control: OperatorOverrides = field(default_factory=partial(OperatorOverrides, "producer"))
    several: bool = False  # whether more than one mailbox of the account is read

    def tasks(self, connection: ImapMailbox, mailbox: SelectedMailbox) -> MailboxTasks:
        """Return what a watcher does on a connection."""
        return MailboxTasks(
            new_mail=self.new_mail(connection, mailbox),
            history=self.history(connection, mailbox),
            labels=self.labels(connection, mailbox),
            quarantine=self.quarantine_retry(connection, mailbox),
            reconcile=lambda wait_for_capacity: self.reconciler(connection, mailbox, wait_for_capacity).steps(),
        )

    def new_mail(self, connection: ImapMailbox, mailbox: SelectedMailbox) -> NewMailSync:
        """Return what brings new mail into the stream."""
        return NewMailSync(self._pipeline(connection, mailbox))

    def history(self, connection: ImapMailbox, mailbox: SelectedMailbox) -> HistorySync:
        """Return what brings the mail that was there before into the stream."""
        return HistorySync(self._pipeline(connection, mailbox))

    def labels(self, connection: ImapMailbox, mailbox: SelectedMailbox) -> LabelSync:
        """Return what brings changed labels into the database."""
        return LabelSync(
            self.account.name,
            connection,
            mailbox,
            appender=self.intake,
            ledger=self.ledger,
            in_flight=self._in_flight,
            interval=self.settings.imap_poll_seconds if self.settings.imap_track_labels else math.inf,
            observe=self.observe,
        )

    def quarantine_retry(self, connection: ImapMailbox, mailbox: SelectedMailbox) -> QuarantineRetry:
        """Return what retries messages that the server refused to send."""
        return QuarantineRetry(
            self.account.name,
            mailbox,
            quarantine=self._quarantine(mailbox),
            appender=Appender(self.link, self.holder),
            fetcher=self._fetcher(connection, mailbox),
            fetch_filter=self._fetch_filter(),
            known_mail=partial(self._known_mail, mailbox),
            observe=self.observe,
        )

    def reconciler(
        self, connection: ImapMailbox, mailbox: SelectedMailbox, wait_for_capacity: Callable[[], bool] | None
    ) -> Reconciler:
        """Return what compares the mailbox with what became of its mail, and with `wait_for_capacity` fills gaps."""
        return Reconciler(
            self.account.name,
            connection,
            mailbox,
            appender=Appender(self.link, self.holder),
            fetcher=self._fetcher(connection, mailbox),
            fetch_filter=self._fetch_filter(),
            known_mail=self._known_mail(mailbox),
            wait_for_capacity=wait_for_capacity,
            observe=self.observe,
        )

    def backfill(
        self, connection: ImapMailbox, mailbox: SelectedMailbox, wait_for_capacity: Callable[[int], None]
    ) -> Backfill:
        """Return what brings the mail of a period into the stream, whatever IMAP_START is."""
        excluded = frozenset(self.account.imap_exclude_labels)
        fetch_filter = FetchFilter(excluded, None, self.settings.imap_message_max_bytes)
        return Backfill(
            connection,
            mailbox,
            appender=Appender(self.link, self.holder),
            selector=self._selector(connection, mailbox, fetch_filter),
            known_mail=self._known_mail(mailbox),
            wait_for_capacity=wait_for_capacity,
        )

    def capacity(self) -> StreamCapacity:
        """Return whether the stream takes more mail, for one thread."""
        settings = self.settings
        return StreamCapacity(self.intake, self.control, settings.stream_max_depth, settings.stream_max_bytes)

    def budget(self) -> DownloadBudget:
        """Return the account's download budget, for one thread."""
        quota = DownloadQuota(self.link, self.account.name)
        return DownloadBudget(self.account.name, quota, self.settings.imap_bytes_per_day, self.observe)

    def _pipeline(self, connection: ImapMailbox, mailbox: SelectedMailbox) -> AppendPipeline:
        return AppendPipeline(
            self.account.name,
            connection,
            mailbox,
            self.intake,
            selector=self._selector(connection, mailbox, self._fetch_filter()),
            known_mail=partial(self._known_mail, mailbox),
            observe=self.observe,
        )

    def _selector(
        self, connection: ImapMailbox, mailbox: SelectedMailbox, fetch_filter: FetchFilter
    ) -> MessageSelector:
        return MessageSelector(
            self.account.name,
            mailbox,
            fetcher=self._fetcher(connection, mailbox),
            quarantine=self._quarantine(mailbox),
            fetch_filter=fetch_filter,
            multiple_mailboxes=self.several,
            observe=self.observe,
        )

    def _fetcher(self, connection: ImapMailbox, mailbox: SelectedMailbox) -> MessageFetcher:
        return MessageFetcher(
            self.account.name,
            connection,
            mailbox,
            blobs=self.blobs,
            blob_threshold=self.settings.blob_threshold_bytes,
            priority_of=priority_by_header(Router(self.settings.routes, self.settings.sinks[1:])),
            observe=self.observe,
        )

    def _fetch_filter(self) -> FetchFilter:
        account = self.account
        excluded = frozenset(account.imap_exclude_labels)
        return FetchFilter(
            excluded, start_of(account), self.settings.imap_message_max_bytes, account.imap_start == "now"
        )

    def _known_mail(self, mailbox: SelectedMailbox) -> KnownMail:
        return KnownMail(self.account.name, mailbox, self.ledger, self._in_flight())

    def _in_flight(self) -> InFlight:
        name = self.account.name
        return InFlight(EntryScanner(self.link, self.link.keys_for(name)), name)

    def _quarantine(self, mailbox: SelectedMailbox) -> Quarantine:
        return Quarantine(self.link, self.account.name, mailbox.name, mailbox.uidvalidity)
