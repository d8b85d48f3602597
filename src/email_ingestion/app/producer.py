"""Builds the producer: one watcher for each account, all of them on one Redis."""

from __future__ import annotations

import random
import secrets
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from email_ingestion.app.account import LedgerOnDemand, Source
from email_ingestion.app.accounts import check_accounts
from email_ingestion.app.alerts import AlertWatch
from email_ingestion.app.canary import Canary
from email_ingestion.app.runner import Breakers, Parts, common_folders, common_loops, identify, run_process
from email_ingestion.app.seat import seat_of
from email_ingestion.blobs import open_blobs
from email_ingestion.breaker import Breaker
from email_ingestion.errors import (
    EmailIngestionError,
    IMAPConnectionError,
    OperationFailed,
    TokenRefreshError,
)
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.oauth2 import TokenSource
from email_ingestion.oauth2.token_refresher import TokenRefresher
from email_ingestion.ops.observers import combine
from email_ingestion.ops.status_records import Names
from email_ingestion.producer import AccountBackoff, Connector, Intervals, Watcher, WatcherSupervisor
from email_ingestion.producer.lease_renewer import LOOP as LEASES
from email_ingestion.producer.lease_renewer import RENEW_SECONDS, LeaseRenewer
from email_ingestion.routing import Router
from email_ingestion.settings import Account, Settings
from email_ingestion.stream import Appender, Leases, Lockout, RedisLink, check_reachable, connect
from email_ingestion.stream.leases import LEASE_SECONDS

# Beyond the poll interval a watcher may sit in one command, in a token refresh and in an append.
SLACK_SECONDS = 90.0
LEASES_SILENCE = 30.0
ROUNDS_MISSED = 3  # poll intervals without anything achieved, after which a watcher is given up


def run_producer(settings: Settings, *, once: bool) -> int:
    """Run the producer until it is stopped, or for one pass; returns the exit code."""
    check_accounts(settings)
    Router(settings.routes, settings.sinks[1:])  # refuses routes that are none
    breakers = Breakers(settings)
    allowed = settings.imap_poll_seconds + settings.imap_timeout_seconds + SLACK_SECONDS
    watchers = {f"watch:{account.name}": allowed for account in settings.all_accounts}
    names = Names(
        dependencies={"redis": True, "imap": False},
        loops=common_loops() | {LEASES: LEASES_SILENCE} | ({} if once else watchers),
        accounts=tuple(account.name for account in settings.all_accounts),
        breakers=("redis", "imap", "oauth2"),
        stream="{email_ingestion}:stream",
        dlq="{email_ingestion}:dlq",
        folders=common_folders(settings),
    )
    return run_process(
        settings, identify("producer", folder=settings.pid_dir), names, breakers, partial(ProducerBody, once=once)
    )


class ProducerBody:
    """All watchers, each in a thread."""

    def __init__(self, parts: Parts, *, once: bool) -> None:
        self._parts = parts
        self._once = once
        self._fatal: EmailIngestionError | None = None
        settings = parts.settings
        imap = parts.breakers.make("imap", IMAPConnectionError)
        oauth = parts.breakers.make("oauth2", TokenRefreshError)
        ledger = LedgerOnDemand(settings.database_url)
        blobs = open_blobs(settings.blob_url)

        # A connection of its own: the leases of hundreds of accounts must not wait for one of theirs.
        own = RedisLink(
            connect(settings.redis_address, f"{parts.identity.instance}-leases"),
            parts.link.keys,
            parts.link.breaker,
            settings.redis_partitions,
        )
        leases = Leases(own, seat_of(settings, parts.identity), secrets.token_hex(4))
        names = [account.name for account in settings.all_accounts]
        self._progress: AbstractContextManager[None] = nullcontext()
        observe = parts.ops.observe
        if once and sys.stderr.isatty():
            from email_ingestion.ops.progress import HistoryProgress  # noqa: PLC0415 - rich: 4 MB that nobody would see

            self._progress = progress = HistoryProgress()
            observe = combine(observe, progress)
        self._lease_renewer = LeaseRenewer(leases, names, parts.ops.observe)

        by_name = {account.name: account for account in settings.all_accounts}

        def supervisor(account: Account) -> WatcherSupervisor:
            backoff = AccountBackoff(random.Random())  # noqa: S311 - jitter
            several = len(by_name[account.name].by_mailbox) > 1

            def watcher() -> Watcher:
                source = Source(
                    account,
                    settings,
                    parts.link,
                    Appender(parts.link, leases.owner),
                    ledger,
                    blobs,
                    observe,
                    leases.owner,
                    parts.control,
                    several=several,
                )
                return watcher_of(source, backoff, imap=imap, oauth=oauth, give_up=self._give_up)

            missed = ROUNDS_MISSED * settings.imap_poll_seconds
            return WatcherSupervisor(account.name, watcher, missed, self._lease_renewer, parts.ops.observe)

        self._supervisors = [supervisor(each) for account in settings.all_accounts for each in account.by_mailbox]
        self._alerts = AlertWatch(settings, parts.ops.metrics, parts.ops.observe)
        self._canary = Canary(settings.canary_seconds, own, parts.control.active_pause, parts.ops.observe)
        parts.front.pings["imap"] = self._reach_imap
        parts.front.pings["oauth2"] = self._get_tokens

    def run(self) -> int:
        """See `Body`."""
        self._lease_renewer.start()
        try:
            return self._pass() if self._once else self._watch()
        finally:
            self._alerts.close()
            self._canary.close()
            self._lease_renewer.close()

    def _pass(self) -> int:
        """One pass over every mailbox."""
        check_reachable(
            self._parts.settings.redis_address
        )  # a single pass does not wait for Redis: it fails with the reason
        for account in self._parts.settings.all_accounts:
            if not self._lease_renewer.owns(account.name, LEASE_SECONDS + 2 * RENEW_SECONDS):
                owner = self._lease_renewer.owner(account.name)
                if owner:  # without one Redis is away, which the pass itself tells
                    raise OperationFailed(f"the account {account.name} is read by the producer {owner}: stop it first")
        with self._progress:
            results = [supervisor.watcher.once() for supervisor in self._supervisors]
        return 0 if all(results) else 1

    def _watch(self) -> int:
        """Every account that is ours, until `stop`."""
        self._alerts.start()
        self._canary.start()
        threads = [
            threading.Thread(target=supervisor.run, name=f"keep-{number}", daemon=True)
            for number, supervisor in enumerate(self._supervisors)
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
        for supervisor in self._supervisors:
            supervisor.stop()

    def abandon(self) -> None:
        """See `Body`; a batch is in the stream or it is fetched again."""

    def _reach_imap(self) -> None:
        for account in self._parts.settings.all_accounts:
            ImapMailbox(account, self._parts.settings.imap_timeout_seconds).close()

    def _get_tokens(self) -> None:
        for account in self._parts.settings.all_accounts:
            if account.imap_auth == "oauth2":
                TokenSource(account).access()

    def _give_up(self, error: EmailIngestionError) -> None:
        """A watcher cannot even begin: with a single account there is nothing left to run for."""
        if len(self._supervisors) == 1:
            self._fatal = error
            self.stop()


def watcher_of(
    source: Source,
    backoff: AccountBackoff,
    *,
    imap: Breaker,
    oauth: Breaker,
    give_up: Callable[[EmailIngestionError], None],
) -> Watcher:
    """The watcher of one account."""
    account, settings = source.account, source.settings
    tokens = None
    if account.imap_auth == "oauth2":
        tokens = TokenRefresher(account.name, TokenSource(account), oauth, source.observe)
    return Watcher(
        account,
        Intervals(
            settings.imap_poll_seconds,
            settings.imap_idle_seconds,
            settings.imap_session_seconds,
            settings.reconcile_seconds,
        ),
        connector=Connector(
            account,
            settings.imap_timeout_seconds,
            tokens=tokens,
            imap_breaker=imap,
            observe=source.observe,
        ),
        imap_breaker=imap,
        make_tasks=source.tasks,
        capacity=source.capacity(),
        budget=source.budget(),
        lockout=Lockout(source.link, account.name),
        backoff=backoff,
        give_up=give_up,
        observe=source.observe,
    )
