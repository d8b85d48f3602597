"""One account: its check, its login, and everything its mail needs on its way into the stream.

For a watcher of the producer, and for commands.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from email_ingestion.blobs import BlobStore
from email_ingestion.errors import ConfigurationError
from email_ingestion.events import Observe
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.mailbox.imap_errors import TokenRejected
from email_ingestion.mailbox.imap_mailbox import SelectedMailbox
from email_ingestion.oauth2 import TokenSource
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
from email_ingestion.producer.other_mailboxes import OtherMailboxes
from email_ingestion.producer.pipeline import AppendPipeline
from email_ingestion.producer.priority import priority_by_header
from email_ingestion.producer.quarantine_retry import QuarantineRetry
from email_ingestion.producer.size_check import SizeCheck
from email_ingestion.producer.suspicion import Suspicion
from email_ingestion.reconcile import Reconciler
from email_ingestion.reconcile.reconciler import SAMPLES
from email_ingestion.routing import Router
from email_ingestion.settings import Account, Settings, load_settings, settings_files, start_of
from email_ingestion.stream import (
    Appender,
    DownloadQuota,
    EntryScanner,
    Miscounts,
    Quarantine,
    RedisLink,
    Suspects,
)

if TYPE_CHECKING:
    from email_ingestion.ledger.store import Ledger


SAMPLE_AGE = 60.0  # seconds of a connection, after which a comparison also reads a few messages whole
MAX_MAILBOXES = 3  # of an account: Gmail allows 15 connections, which the owner's own programs need too


class LedgerOnDemand:
    """The ledger, opened at its first use: mail is fetched while the database is away."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._ledger: Ledger | None = None

    def __call__(self) -> Ledger:
        """Return the ledger. Raises SinkUnavailable or ConfigurationError."""
        from email_ingestion.ledger.store import open_ledger  # noqa: PLC0415 - SQLAlchemy: 0.15 s, 13 MB

        with self._lock:
            self._ledger = self._ledger or open_ledger(self._url)
            return self._ledger

    def close(self) -> None:
        """Close the ledger if it was opened."""
        with self._lock:
            if self._ledger:
                self._ledger.close()


@dataclass(frozen=True, slots=True)
class AccountServices:
    """Makes the parts of the producer for one account; a connection is passed to each part."""

    account: Account
    settings: Settings
    link: RedisLink
    appender: Appender  # one per thread
    ledger: Callable[[], Ledger]
    blobs: BlobStore
    observe: Observe = lambda _: None  # a command prints its own counts
    lease_owner: str = ""  # the owner that the stream checks at every append; a command has none
    overrides: OperatorOverrides = field(default_factory=partial(OperatorOverrides, "producer"))
    other_mailboxes: tuple[str, ...] = ()  # that are read beside the account's `imap_mailbox`

    def tasks(self, connection: ImapMailbox, mailbox: SelectedMailbox) -> MailboxTasks:
        """Return what a watcher does on a connection."""
        return MailboxTasks(
            new_mail=self.new_mail(connection, mailbox),
            history=self.history(connection, mailbox),
            labels=self.labels(connection, mailbox),
            quarantine=self.quarantine_retry(connection, mailbox),
            reconcile=lambda wait_for_capacity: self.reconciler(
                # Not in the first comparison of a connection: a restart is to read nothing again.
                *(connection, mailbox, wait_for_capacity),
                samples=SAMPLES if connection.age > SAMPLE_AGE else 0,
            ).steps(),
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
            appender=self.appender,
            ledger=self.ledger,
            in_flight=self._in_flight,
            others=self._others(connection, mailbox),
            interval=self.settings.imap_poll_seconds if self.settings.imap_track_labels else math.inf,
            observe=self.observe,
        )

    def quarantine_retry(self, connection: ImapMailbox, mailbox: SelectedMailbox) -> QuarantineRetry:
        """Return what retries messages that the server refused to send."""
        return QuarantineRetry(
            self.account.name,
            mailbox,
            quarantine=self._quarantine(mailbox),
            appender=Appender(self.link, self.lease_owner),
            fetcher=self._fetcher(connection, mailbox, always_singly=True),
            fetch_filter=self._fetch_filter(),
            known_mail=partial(self._known_mail, connection, mailbox),
            observe=self.observe,
        )

    def reconciler(
        self,
        connection: ImapMailbox,
        mailbox: SelectedMailbox,
        wait_for_capacity: Callable[[], bool] | None,
        *,
        samples: int = SAMPLES,
    ) -> Reconciler:
        """Return what compares the mailbox with what became of its mail, and with `wait_for_capacity` fills gaps."""
        return Reconciler(
            self.account.name,
            connection,
            mailbox,
            appender=Appender(self.link, self.lease_owner),
            fetcher=self._fetcher(connection, mailbox),
            fetch_filter=self._fetch_filter(),
            known_mail=self._known_mail(connection, mailbox),
            others=self._others(connection, mailbox),
            quarantine=self._quarantine(mailbox),
            wait_for_capacity=wait_for_capacity,
            samples=samples,
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
            appender=Appender(self.link, self.lease_owner),
            selector=self._selector(connection, mailbox, fetch_filter),
            known_mail=self._known_mail(connection, mailbox),
            wait_for_capacity=wait_for_capacity,
        )

    def capacity(self) -> StreamCapacity:
        """Return whether the stream takes more mail, for one thread."""
        settings = self.settings
        return StreamCapacity(self.appender, self.overrides, settings.stream_max_depth, settings.stream_max_bytes)

    def budget(self) -> DownloadBudget:
        """Return the account's download budget, for one thread."""
        quota = DownloadQuota(self.link, self.account.name)
        return DownloadBudget(self.account.name, quota, self.settings.imap_bytes_per_day, self.observe)

    def _pipeline(self, connection: ImapMailbox, mailbox: SelectedMailbox) -> AppendPipeline:
        return AppendPipeline(
            self.account.name,
            connection,
            mailbox,
            self.appender,
            selector=self._selector(connection, mailbox, self._fetch_filter()),
            known_mail=partial(self._known_mail, connection, mailbox),
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
            multiple_mailboxes=bool(self.other_mailboxes),
            observe=self.observe,
        )

    def _fetcher(
        self, connection: ImapMailbox, mailbox: SelectedMailbox, *, always_singly: bool = False
    ) -> MessageFetcher:
        name = self.account.name
        suspicion = Suspicion(
            name,
            mailbox.name,
            connection,
            quarantine=self._quarantine(mailbox),
            suspects=Suspects(self.link, name, mailbox.name, mailbox.uidvalidity),
            observe=self.observe,
            always_singly=always_singly,
        )
        return MessageFetcher(
            name,
            connection,
            mailbox,
            suspicion=suspicion,
            sizes=SizeCheck(Miscounts(self.link, name)),
            blobs=self.blobs,
            blob_threshold=self.settings.blob_threshold_bytes,
            message_max_bytes=self.settings.imap_message_max_bytes,
            priority_of=priority_by_header(Router(self.settings.routes, self.settings.sinks[1:])),
            observe=self.observe,
        )

    def _fetch_filter(self) -> FetchFilter:
        account = self.account
        excluded = frozenset(account.imap_exclude_labels)
        return FetchFilter(
            excluded, start_of(account), self.settings.imap_message_max_bytes, account.imap_start == "now"
        )

    def _known_mail(self, connection: ImapMailbox, mailbox: SelectedMailbox) -> KnownMail:
        return KnownMail(self.account.name, mailbox, self.ledger, self._in_flight(), connection.fetch_message_ids)

    def _others(self, connection: ImapMailbox, mailbox: SelectedMailbox) -> OtherMailboxes:
        cursor_of = partial(self.appender.cursor, self.account.name)
        return OtherMailboxes(connection, mailbox, self.other_mailboxes, cursor_of)

    def _in_flight(self) -> InFlight:
        name = self.account.name
        return InFlight(EntryScanner(self.link, self.link.keys_for(name)), name)

    def _quarantine(self, mailbox: SelectedMailbox) -> Quarantine:
        return Quarantine(self.link, self.account.name, mailbox.name, mailbox.uidvalidity)


def credentials_version(account: Account) -> tuple[str | None, ...]:
    """Return what changes when the account's password or consent does, or any setting.

    A new access token is no change: the other mailboxes of the account get one every hour.
    """
    files = [*settings_files(), account.google_service_account_file]
    return _consent_version(account.google_token_file), *(_digest(path) for path in files if path)


def _consent_version(path: Path) -> str | None:
    try:
        consent = json.loads(path.read_text())
        kept = {key: consent.get(key) for key in ("refresh_token", "client_id", "client_secret", "scopes")}
    except (OSError, ValueError, AttributeError):  # none, or encrypted
        return _digest(path)
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def reread(account: Account) -> Account:
    """Return the account as the settings have it now, with the mailbox it had; as it is where they are wrong now."""
    try:
        found = next((each for each in load_settings().all_accounts if each.name == account.name), account)
        check_account(found)
    except ConfigurationError:
        return account
    return found.model_copy(update={"imap_mailbox": account.imap_mailbox})


def check_accounts(accounts: Iterable[Account], *, tokens: bool = True) -> None:
    """Check each of the accounts; call it before the start."""
    for account in accounts:
        check_account(account, tokens=tokens)


def check_account(account: Account, *, tokens: bool = True) -> None:
    """Raise ConfigurationError for an account that only an operator can set right.

    With `tokens` false it may lack its token.
    """
    if not 1 <= len(account.by_mailbox) <= MAX_MAILBOXES:
        raise ConfigurationError(f"IMAP_MAILBOX names one to {MAX_MAILBOXES} mailboxes: each has its own connection")
    if not account.imap_user:
        raise ConfigurationError("set IMAP_USER in .env to the address of the mailbox; see config/.env.example")
    if account.imap_auth == "password":
        if not account.imap_password:
            raise ConfigurationError("IMAP_AUTH=password needs IMAP_PASSWORD or IMAP_PASSWORD_FILE")
    else:
        token = TokenSource(account).describe()
        if tokens and token.state == "missing":
            raise ConfigurationError(token.problem or "there is no token")


def log_in(account: Account, timeout: float) -> ImapMailbox:
    """Connect and log in for a command. Raises AuthenticationFailed, IMAPConnectionError, TokenRefreshError."""
    tokens = TokenSource(account) if account.imap_auth == "oauth2" else None
    token = tokens.get_token().token if tokens else None
    connection = ImapMailbox(account, timeout)
    try:
        try:
            connection.login(token)
        except TokenRejected:
            if not tokens:
                raise
            connection.close()
            connection = ImapMailbox(account, timeout)
            connection.login(tokens.get_token(rejected=token).token)
    except BaseException:
        connection.close()
        raise
    return connection
