"""Builds the producer: one watcher for each account, all of them on one Redis."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from functools import partial

from email_ingestion.blobs import Blobs, open_blobs
from email_ingestion.breaker import Breaker
from email_ingestion.errors import (
    ConfigurationError,
    EmailIngestionError,
    IMAPConnectionError,
    TokenRefreshError,
)
from email_ingestion.ledger import Ledger, open_ledger
from email_ingestion.mailbox import ImapMailbox, Outline, TokenSource
from email_ingestion.mailbox.imap import Opened
from email_ingestion.ops.records import Names
from email_ingestion.producer import Sync, Watcher
from email_ingestion.producer.choice import Rules
from email_ingestion.producer.watch import Pace
from email_ingestion.settings import Account, Settings, start_of
from email_ingestion.stream import Intake
from email_ingestion.wiring.process import Breakers, Parts, common_loops, identify, run_process

# Beyond the poll interval a watcher may sit in one command, in a token refresh and in an append.
SLACK_SECONDS = 90.0


def run_producer(settings: Settings, *, once: bool) -> int:
    """Run the producer until it is stopped, or for one pass; returns the exit code."""
    check_accounts(settings)
    breakers = Breakers(settings)
    allowed = settings.imap_poll_seconds + settings.imap_timeout_seconds + SLACK_SECONDS
    names = Names(
        dependencies={"redis": True, "imap": False},
        loops=common_loops() | ({} if once else {f"watch:{it.name}": allowed for it in settings.all_accounts}),
        accounts=tuple(account.name for account in settings.all_accounts),
        breakers=("redis", "imap", "oauth2"),
        stream="{email_ingestion}:stream",
        dlq="{email_ingestion}:dlq",
    )
    return run_process(settings, identify("producer"), names, breakers, partial(ProducerBody, once=once))


def check_accounts(settings: Settings) -> None:
    """Refuse to start where only an operator can help; later on the same only holds up the account."""
    for account in settings.all_accounts:
        _check(account)


def _check(account: Account) -> None:
    if not account.imap_user:
        raise ConfigurationError("set IMAP_USER in .env to the address of the mailbox; see config/.env.example")
    if account.imap_auth == "password":
        if not account.imap_password:
            raise ConfigurationError("IMAP_AUTH=password needs IMAP_PASSWORD or IMAP_PASSWORD_FILE")
    elif not account.google_service_account_file:
        token = TokenSource(account).describe()
        if token.state == "missing":
            raise ConfigurationError(token.problem or "there is no token")


class ProducerBody:
    """All watchers, each in a thread."""

    def __init__(self, parts: Parts, *, once: bool) -> None:
        self._parts = parts
        self._once = once
        self._fatal: EmailIngestionError | None = None
        settings = parts.settings
        imap = parts.breakers.make("imap", IMAPConnectionError)
        oauth = parts.breakers.make("oauth2", TokenRefreshError)
        known = KnownMail(settings.database_url)
        blobs = open_blobs(settings.blob_url)
        self._watchers = [
            _watcher(parts, account, imap=imap, oauth=oauth, known=known, blobs=blobs, give_up=self._give_up)
            for account in settings.all_accounts
        ]

    def run(self) -> int:
        """See `Body`."""
        if self._once:
            results = [watcher.once() for watcher in self._watchers]
            return 0 if all(results) else 1
        threads = [
            threading.Thread(target=watcher.run, name=f"watch-{number}", daemon=True)
            for number, watcher in enumerate(self._watchers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._fatal:
            raise self._fatal
        return 0

    def stop(self) -> None:
        """See `Body`."""
        for watcher in self._watchers:
            watcher.stop()

    def abandon(self) -> None:
        """See `Body`; a batch is in the stream or it is fetched again."""

    def _give_up(self, error: EmailIngestionError) -> None:
        """A watcher cannot even begin: with a single account there is nothing left to run for."""
        if len(self._watchers) == 1:
            self._fatal = error
            self.stop()


class KnownMail:
    """Asks the ledger what was delivered before, on the rare occasions when the cursor does not tell."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._ledger: Ledger | None = None

    def __call__(self, account: str, opened: Opened, outlines: Sequence[Outline]) -> set[int]:
        """The UIDs among `outlines` that the ledger has; raises SinkUnavailable."""
        ledger = self._ledger = self._ledger or open_ledger(self._url)
        if outlines[0].gm_msgid is not None:
            ids = ledger.known(account, [outline.gm_msgid for outline in outlines if outline.gm_msgid is not None])
            return {outline.uid for outline in outlines if outline.gm_msgid in ids}
        return ledger.known_uids(account, opened.name, opened.uidvalidity, outlines[0].uid, outlines[-1].uid)


def _watcher(
    parts: Parts,
    account: Account,
    *,
    imap: Breaker,
    oauth: Breaker,
    known: KnownMail,
    blobs: Blobs,
    give_up: Callable[[EmailIngestionError], None],
) -> Watcher:
    settings = parts.settings
    intake = Intake(parts.link)

    def make_sync(connection: ImapMailbox, opened: Opened, wait_for_room: Callable[[], bool]) -> Sync:
        return Sync(
            account.name,
            connection,
            opened,
            intake=intake,
            blobs=blobs,
            blob_threshold=settings.blob_threshold_bytes,
            rules=Rules(frozenset(account.imap_exclude_labels), start_of(account)),
            begin_now=account.imap_start == "now",
            known=known,
            wait_for_room=wait_for_room,
            observe=parts.ops.observe,
        )

    return Watcher(
        account,
        Pace(
            settings.imap_poll_seconds,
            settings.imap_idle_seconds,
            settings.imap_timeout_seconds,
            settings.imap_session_seconds,
        ),
        tokens=TokenSource(account) if account.imap_auth == "oauth2" else None,
        imap_breaker=imap,
        oauth_breaker=oauth,
        full=partial(_full, intake, settings),
        make_sync=make_sync,
        give_up=give_up,
        observe=parts.ops.observe,
        rng=random.Random(),  # noqa: S311 - jitter
    )


def _full(intake: Intake, settings: Settings) -> str | None:
    """Why nothing more should be fetched now, or None: Gmail is the buffer, Redis is not."""
    load = intake.load()
    if load.depth >= settings.stream_max_depth:
        return f"{load.depth} messages in the stream, STREAM_MAX_DEPTH is {settings.stream_max_depth}"
    if load.volume >= settings.stream_max_bytes:
        return f"{load.volume} bytes in the stream, STREAM_MAX_BYTES is {settings.stream_max_bytes}"
    return None
