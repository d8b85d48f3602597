"""Wires the scrub of stored bytes for commands and for the producer, which runs one each night."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self

from email_ingestion.app.account import AccountServices, log_in
from email_ingestion.app.account_list import configured_accounts
from email_ingestion.background import PeriodicThread
from email_ingestion.blobs import BlobStore
from email_ingestion.errors import EmailIngestionError
from email_ingestion.events import LoopFailed, Observe
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.producer.backpressure import HISTORY_SHARE, DownloadBudget
from email_ingestion.settings import Account, Settings
from email_ingestion.stream import Appender, EntryScanner, RedisLink
from email_ingestion.stream.scrub_record import ScrubProgress, ScrubRecord

if TYPE_CHECKING:
    from email_ingestion.ledger.store import Ledger
    from email_ingestion.reconcile.content_fetch import ContentFetch, LostMessage
    from email_ingestion.stream.entry_scan import ScannedEntry

LOOP = "blobs"
MAX_RATE = 20e6  # bytes a second that a scrub beside the mail reads
LOOK_SECONDS = 60.0  # between two looks whether one is due
FIRST_SECONDS = 600.0  # after the start of a process: it has better things to do then
RECORD_SECONDS = 10.0


class MailServers:
    """Fetches lost messages from the servers of their accounts; a connection is made when it is needed first."""

    def __init__(
        self, settings: Settings, link: RedisLink, ledger: Callable[[], Ledger], blobs: BlobStore, observe: Observe
    ) -> None:
        self._settings = settings
        self._link = link
        self._ledger = ledger
        self._blobs = blobs
        self._observe = observe
        self._open: dict[str, tuple[ImapMailbox, DownloadBudget, ContentFetch]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self._open):
            self._close(name)

    def fetch(self, lost: LostMessage, spooled: IO[bytes]) -> str | None:
        """Write the bytes of a lost message into a file; return why that was impossible, or None."""
        accounts = configured_accounts(self._settings, self._ledger())
        account = next((each for each in accounts if each.name == lost.account), None)
        if account is None:
            return f"the account {lost.account} is not configured here"
        try:
            return self._fetch_of(account).fetch(lost, spooled)
        except EmailIngestionError as error:
            self._close(account.name)
            return str(error)

    def _fetch_of(self, account: Account) -> ContentFetch:
        from email_ingestion.reconcile.content_fetch import ContentFetch  # noqa: PLC0415 - with it comes SQLAlchemy

        if account.name not in self._open:
            services = AccountServices(
                account, self._settings, self._link, Appender(self._link), self._ledger, self._blobs, self._observe
            )
            budget = services.budget()
            connection = log_in(account, self._settings.imap_timeout_seconds)
            settings = [each.imap_mailbox for each in account.by_mailbox]
            fetch = ContentFetch(connection, settings, lambda size: budget.reserve(size, HISTORY_SHARE))
            self._open[account.name] = connection, budget, fetch
        return self._open[account.name][2]

    def _close(self, name: str) -> None:
        if name in self._open:
            connection, budget, _ = self._open.pop(name)
            received = connection.received_bytes
            connection.close()
            budget.correct(received, last=True)


def queued_entries(link: RedisLink) -> Iterator[ScannedEntry]:
    """Yield the entries of the stream and the dead letters; one that moves meanwhile is among them at least once."""
    for scanner in [EntryScanner(link, keys) for keys in link.partitions]:
        for pages in (scanner.dead_letter_pages(), scanner.stream_pages(), scanner.dead_letter_pages()):
            for page in pages:
                yield from page.entries


class NightlyScrub:
    """A thread that scrubs the stored bytes once in `interval` seconds, whichever process did so last."""

    def __init__(
        self,
        settings: Settings,
        link: RedisLink,
        ledger: Callable[[], Ledger],
        blobs: BlobStore,
        observe: Observe,
    ) -> None:
        self._settings = settings
        self._link = link
        self._ledger = ledger
        self._blobs = blobs
        self._observe = observe
        self._record = ScrubRecord(link)
        self._interval = settings.blob_verify_seconds
        self._not_before = time.monotonic() + min(FIRST_SECONDS, self._interval)
        self._thread = PeriodicThread(
            LOOP,
            min(LOOK_SECONDS, self._interval),
            self._run_if_due,
            immediate=False,
            on_error=lambda error: observe(LoopFailed(LOOP, error)),
        )

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread soon; the next scrub goes on where this one was."""
        self._thread.close()

    def _run_if_due(self) -> None:
        if time.monotonic() < self._not_before:
            return
        progress = self._record.read()
        if progress.seconds_since_end is None or progress.seconds_since_end >= self._interval:
            self._scrub(progress)

    def _scrub(self, progress: ScrubProgress) -> None:
        from email_ingestion.reconcile.content_scrub import ContentScrub  # noqa: PLC0415 - with it comes SQLAlchemy

        with MailServers(self._settings, self._link, self._ledger, self._blobs, self._observe) as servers:
            scrub = ContentScrub(
                self._blobs,
                self._ledger(),
                lambda: queued_entries(self._link),
                fetch_again=servers.fetch,
                max_rate=MAX_RATE,
                pause=lambda seconds: not self._thread.is_closed(seconds),
                after=progress.position,
                lost_before=progress.lost,
                observe=self._observe,
            )
            recorded_at = time.monotonic()
            for _ in scrub.steps():
                if time.monotonic() - recorded_at >= RECORD_SECONDS:
                    self._record.write_position(scrub.position, scrub.lost_count)
                    recorded_at = time.monotonic()
            if scrub.complete:
                self._record.write_end()
            else:
                self._record.write_position(scrub.position, scrub.lost_count)
