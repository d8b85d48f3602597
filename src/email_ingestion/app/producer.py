"""Builds and runs the producer: one watcher per mailbox, all of them on one Redis."""

from __future__ import annotations

import random
import re
import secrets
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

from email_ingestion.app.account import AccountServices, LedgerOnDemand, check_accounts, credentials_version, reread
from email_ingestion.app.certificate_watch import CertificateWatch, tls_servers
from email_ingestion.app.nightly_retention import NightlyRetention
from email_ingestion.app.nightly_scrub import NightlyScrub
from email_ingestion.app.runner import ProcessContext, ProcessRunner, common_folders, common_loops, identify
from email_ingestion.atomic_files import write_private
from email_ingestion.background import PeriodicThread
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
from email_ingestion.ops.alert_monitor import AlertThread
from email_ingestion.ops.observers import combine
from email_ingestion.ops.status_records import Identity, Names
from email_ingestion.producer import AccountBackoff, Connector, Intervals, Watcher, WatcherSupervisor
from email_ingestion.producer.canary import Canary
from email_ingestion.producer.lease_renewer import LOOP as LEASES
from email_ingestion.producer.lease_renewer import RENEW_SECONDS, LeaseRenewer
from email_ingestion.producer.ledger_watch import LedgerWatch
from email_ingestion.routing import Router
from email_ingestion.settings import Account, Settings
from email_ingestion.stream import Appender, Leases, Lockout, RedisLink, check_reachable, connect
from email_ingestion.stream.leases import LEASE_SECONDS

if TYPE_CHECKING:
    from email_ingestion.ops.progress import HistoryProgress

# Beyond the poll interval a watcher may sit in one command, in a token refresh and in an append.
SLACK_SECONDS = 90.0
LEASES_SILENCE = 30.0
ROUNDS_MISSED = 3  # poll intervals without progress, after which a watcher is replaced


def run_producer(settings: Settings, *, once: bool, wait_for_consent: bool = False) -> int:
    """Run the producer until it is stopped, or for one pass; return the exit code.

    With `wait_for_consent` an account without a token is one that an operator must authorize, not a reason to end: a
    container that ends is started again and again.
    """
    check_accounts(settings, tokens=not wait_for_consent)
    Router(settings.routes, settings.sinks[1:])  # raises ConfigurationError for a wrong route
    allowed = settings.imap_poll_seconds + settings.imap_timeout_seconds + SLACK_SECONDS
    watchers = {f"watch:{account.name}": allowed for account in settings.all_accounts}
    names = Names(
        dependencies={"redis": True, "imap": False},
        loops=common_loops() | {LEASES: LEASES_SILENCE} | ({} if once else watchers),
        accounts=tuple(account.name for account in settings.all_accounts),
        breakers=("redis", *dict.fromkeys(breaker_names(settings).values()), "oauth2"),
        stream="{email_ingestion}:stream",
        dlq="{email_ingestion}:dlq",
        folders=common_folders(settings),
    )
    identity = identify("producer", folder=settings.pid_dir)
    return ProcessRunner(settings, identity, names, partial(ProducerService, once=once)).run()


def breaker_names(settings: Settings) -> dict[str, str]:
    """Return the name of the circuit breaker of each account: those on one mail server share it.

    The first server's is `imap`; any other has the name of its first account besides.
    """
    names: dict[tuple[str, int], str] = {}
    for account in settings.all_accounts:
        names.setdefault((account.imap_host, account.imap_port), f"imap:{account.name}" if names else "imap")
    return {each.name: names[each.imap_host, each.imap_port] for each in settings.all_accounts}


class ProducerService:
    """All watchers of the producer, every one in a thread of its own."""

    def __init__(self, context: ProcessContext, *, once: bool) -> None:
        self._context = context
        self._once = once
        self._fatal: EmailIngestionError | None = None
        self._imap_breakers = {
            name: context.breakers.add(name, IMAPConnectionError, open_from_start=True)
            for name in dict.fromkeys(breaker_names(context.settings).values())
        }
        self._oauth2_breaker = context.breakers.add("oauth2", TokenRefreshError, open_from_start=True)
        self._ledger = LedgerOnDemand(context.settings.database_url)
        self._blobs = open_blobs(context.settings.blob_url)
        self._progress = _history_progress() if once else None
        observe = context.ops.observe
        self._observe = combine(observe, self._progress) if self._progress else observe
        link = self._second_link()
        self._leases = Leases(link, instance_id(context.settings, context.identity), secrets.token_hex(4))
        names = [account.name for account in context.settings.all_accounts]
        self._lease_renewer = LeaseRenewer(self._leases, names, context.ops.observe)
        self._supervisors = [
            self._supervisor(mailbox, multiple_mailboxes=len(account.by_mailbox) > 1)
            for account in context.settings.all_accounts
            for mailbox in account.by_mailbox
        ]
        self._monitors = [*self._optional_threads(link)]
        for name in self._imap_breakers:
            context.admin_actions.pings[name] = partial(self._ping_imap, name)
        context.admin_actions.pings["oauth2"] = self._ping_oauth2

    def _second_link(self) -> RedisLink:
        """Connect once more: the leases of hundreds of accounts must not wait for the traffic of one."""
        settings, link = self._context.settings, self._context.link
        client = connect(settings.redis_address, f"{self._context.identity.instance}-leases")
        return RedisLink(client, link.keys, link.breaker, settings.redis_partitions)

    def _supervisor(self, account: Account, *, multiple_mailboxes: bool) -> WatcherSupervisor:
        context = self._context
        backoff = AccountBackoff(random.Random(), context.settings.cb_recovery_timeout)  # noqa: S311 - jitter
        current: Watcher | None = None

        def watcher() -> Watcher:
            nonlocal account, current
            if current and current.is_outdated:
                account = reread(account)
            services = AccountServices(
                account,
                context.settings,
                context.link,
                Appender(context.link, self._leases.owner),
                self._ledger,
                self._blobs,
                self._observe,
                self._leases.owner,
                context.overrides,
                multiple_mailboxes=multiple_mailboxes,
            )
            imap = self._imap_breakers[breaker_names(context.settings)[account.name]]
            current = watcher_of(services, backoff, imap=imap, oauth2=self._oauth2_breaker, give_up=self._give_up)
            return current

        missed = ROUNDS_MISSED * context.settings.imap_poll_seconds
        return WatcherSupervisor(account.name, watcher, missed, self._lease_renewer, context.ops.observe)

    def _optional_threads(
        self, link: RedisLink
    ) -> Iterator[PeriodicThread | NightlyScrub | NightlyRetention | LedgerWatch]:
        """Yield the built-in alerts and the canary, where they are configured, and what looks at stores and servers."""
        settings, ops = self._context.settings, self._context.ops
        yield AlertThread(settings, ops.metrics, ops.observe, self._context.admin_actions.incidents).make()
        if settings.canary_seconds:
            yield Canary(settings.canary_seconds, link, self._canary_waits, ops.observe)
        if tls_servers(settings):
            yield CertificateWatch(settings, ops.observe)
        yield LedgerWatch(
            link,
            self._ledger,
            self._compare_all,
            partial(ops.status.set_condition, "ledger"),
            ops.observe,
        )
        yield NightlyScrub(settings, link, self._ledger, self._blobs, ops.observe)
        yield NightlyRetention(settings, link, self._ledger, ops.observe)

    def _canary_waits(self) -> bool:
        overrides = self._context.overrides
        return overrides.active_pause() is not None or overrides.is_off("canary")

    def run(self) -> int:
        """Read every account until `stop` is called, or once; return the exit code."""
        self._lease_renewer.start()
        try:
            return self._run_once() if self._once else self._watch()
        finally:
            for monitor in self._monitors:
                monitor.close()
            self._lease_renewer.close()

    def _run_once(self) -> int:
        # One pass does not wait for Redis: it fails, and says why.
        check_reachable(self._context.settings.redis_address)
        for account in self._context.settings.all_accounts:
            if not self._lease_renewer.owns(account.name, LEASE_SECONDS + 2 * RENEW_SECONDS):
                owner = self._lease_renewer.owner(account.name)
                if owner:  # without one Redis is away, and the pass itself says so
                    raise OperationFailed(f"the account {account.name} is read by the producer {owner}: stop it first")
        with self._progress or nullcontext():
            results = [supervisor.watcher.once() for supervisor in self._supervisors]
        return 0 if all(results) else 1

    def _watch(self) -> int:
        for monitor in self._monitors:
            monitor.start()
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

    def _compare_all(self) -> None:
        for supervisor in self._supervisors:
            supervisor.watcher.compare_soon()

    def stop(self) -> None:
        """End all watchers."""
        for supervisor in self._supervisors:
            supervisor.stop()

    def abandon(self) -> None:
        """Do nothing: a batch is in the stream, or it is fetched again."""

    def _ping_imap(self, breaker: str) -> None:
        settings = self._context.settings
        for account in settings.all_accounts:
            if breaker_names(settings)[account.name] == breaker:
                ImapMailbox(account, settings.imap_timeout_seconds).close()

    def _ping_oauth2(self) -> None:
        for account in self._context.settings.all_accounts:
            if account.imap_auth == "oauth2":
                TokenSource(account).get_token()

    def _give_up(self, error: EmailIngestionError) -> None:
        """End the process if the only watcher cannot even begin."""
        if len(self._supervisors) == 1:
            self._fatal = error
            self.stop()


def _history_progress() -> HistoryProgress | None:
    """Return progress bars for a pass on a terminal."""
    if not sys.stderr.isatty():
        return None
    from email_ingestion.ops.progress import HistoryProgress  # noqa: PLC0415 - rich: 4 MB that a daemon never shows

    return HistoryProgress()


def instance_id(settings: Settings, identity: Identity) -> str:
    """Return the id under which this process owns leases; it is the same after a restart, even of a killed process.

    It is kept beside the PID file, and not made of host names alone: two containers may have the same host name. The
    caller holds the lock of the PID file, so no other process uses the id.
    """
    path = settings.pid_dir / f"{identity.stem}.seat"
    try:
        name = path.read_text().strip()
    except OSError:
        name = ""
    if not re.fullmatch(r"[0-9a-f]{16}", name):
        name = secrets.token_hex(8)
        write_private(path, f"{name}\n")
    return f"{identity.instance}/{name}"


def watcher_of(
    services: AccountServices,
    backoff: AccountBackoff,
    *,
    imap: Breaker,
    oauth2: Breaker,
    give_up: Callable[[EmailIngestionError], None],
) -> Watcher:
    """Make the watcher of one mailbox."""
    account, settings = services.account, services.settings
    tokens = None
    if account.imap_auth == "oauth2":
        tokens = TokenRefresher(account.name, TokenSource(account), oauth2, services.observe)
    return Watcher(
        account,
        Intervals(
            settings.imap_poll_seconds,
            settings.imap_idle_seconds,
            settings.imap_session_seconds,
            settings.reconcile_seconds,
            settings.cb_recovery_timeout,
        ),
        connector=Connector(
            account,
            settings.imap_timeout_seconds,
            tokens=tokens,
            imap_breaker=imap,
            on_login=backoff.count_login,
            credentials_version=partial(credentials_version, account),
            observe=services.observe,
        ),
        imap_breaker=imap,
        make_tasks=services.tasks,
        capacity=services.capacity(),
        budget=services.budget(),
        lockout=Lockout(services.link, account.name),
        backoff=backoff,
        give_up=give_up,
        observe=services.observe,
    )
